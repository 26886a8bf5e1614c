-- Reads a stream, at one moment.
--
-- Behind stream.lua. ARGV from the second on: first offset that is wanted ('-' for all that are kept)
-- Gives: epoch, the newest offset (false: not known), where the count began, entries
local count = redis.call('HMGET', KEYS[2], 'o', 'b')
if not count[1] then
    return { epoch, false, '0', {} }
end
return { epoch, count[1], count[2], redis.call('XRANGE', KEYS[1], ARGV[2], '+') }

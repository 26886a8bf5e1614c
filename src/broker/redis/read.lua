-- Reads a stream, at one moment.
--
-- KEYS: the history, the counter, and the epoch where all keys are on one server.
-- ARGV: first offset that is wanted ('-' for all that are kept), epoch
-- Gives: epoch, the newest offset (false: not known), where the count began, entries
local epoch = ARGV[2]
if KEYS[3] then
    epoch = redis.call('GET', KEYS[3])
    if not epoch then
        return redis.error_reply('NOEPOCH nothing of what was kept is there')
    end
end
local count = redis.call('HMGET', KEYS[2], 'o', 'b')
if not count[1] then
    return { epoch, false, '0', {} }
end
return { epoch, count[1], count[2], redis.call('XRANGE', KEYS[1], ARGV[1], '+') }

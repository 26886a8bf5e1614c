-- Takes a session out for whoever may have it: once.
--
-- KEYS: the session. ARGV: '1' if its client shows a token, else '0'; the connection identifiers of the token.
-- Gives: the session, when it was over, and the time, in milliseconds; or nothing
local kept = redis.call('HMGET', KEYS[1], 'a', 'i', 's', 't')
local opens = ARGV[1] == '1' and kept[1] == 't' and kept[2] == ARGV[2] or ARGV[1] == '0' and kept[1] == 'o'
if not opens then
    return false
end
redis.call('DEL', KEYS[1])
local time = redis.call('TIME')
return { kept[3], kept[4], string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000)) }

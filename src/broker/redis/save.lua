-- Keeps a session for its client.
--
-- KEYS: the session. ARGV: 't' if its client was let in by a token, else 'o'; its connection identifiers; the session;
-- milliseconds to keep it; milliseconds since it was over
local time = redis.call('TIME')
local at = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000) - ARGV[5])
redis.call('HSET', KEYS[1], 'a', ARGV[1], 'i', ARGV[2], 's', ARGV[3], 't', at)
redis.call('PEXPIRE', KEYS[1], ARGV[4])

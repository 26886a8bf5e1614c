-- Notes that whoever has certain connection identifiers is sent away now.
--
-- KEYS: the note. ARGV: milliseconds for which sessions are kept.
local time = redis.call('TIME')
local now = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
redis.call('SET', KEYS[1], now, 'PX', ARGV[1] + 10000)

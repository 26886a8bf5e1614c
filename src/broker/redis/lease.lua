-- A node lives. Looks for one that does not, which is given to the caller to be swept, and to nobody else meanwhile.
--
-- KEYS: when the lease of each node ends. ARGV: node, milliseconds of a lease
-- Gives: 1 if the node was known, how many nodes live, a node that does not (false: none)
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local last = string.format('%.0f', now + ARGV[2])
local known = redis.call('ZSCORE', KEYS[1], ARGV[1])
redis.call('ZADD', KEYS[1], last, ARGV[1])
local dead = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now), 'LIMIT', 0, 1)
local living = redis.call('ZCOUNT', KEYS[1], '(' .. string.format('%.0f', now), '+inf')
if dead[1] then
    redis.call('ZADD', KEYS[1], last, dead[1])
end
return { known and 1 or 0, living, dead[1] or false }

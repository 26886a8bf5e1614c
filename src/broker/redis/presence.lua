-- Somebody comes to a stream or goes.
--
-- KEYS: who is present on it. ARGV: '1' to come or '0' to go, node, session, id, info (JSON text), channel to publish the
-- event to ('' for none), the event as it is published
-- Gives: 1 if others are to be told, else 0
local people = KEYS[1]
local session, count, info = 's:' .. ARGV[3], 'c:' .. ARGV[4], 'i:' .. ARGV[4]
local known = redis.call('HGET', people, session)
local due = 0
if ARGV[1] == '1' then
    local entry = ARGV[2] .. ' ' .. ARGV[4]
    if known and known ~= entry then
        return 0
    end
    redis.call('HSET', people, session, entry, info, ARGV[5])
    if not known and redis.call('HINCRBY', people, count, 1) == 1 then
        due = 1
    end
elseif known then
    redis.call('HDEL', people, session)
    if redis.call('HINCRBY', people, count, -1) <= 0 then
        redis.call('HDEL', people, count, info)
        due = 1
    end
end
if due == 1 and ARGV[6] ~= '' then
    redis.call('PUBLISH', ARGV[6], ARGV[7])
end
return due

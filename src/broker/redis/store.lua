-- Gives a publication its place in its stream and keeps it.
--
-- Behind stream.lua. ARGV from the second on: node, number of the store, message, kind, session that is left out, messages to
-- keep, milliseconds to keep them, channel to publish to ('' for none), beginning of what is published there
-- Gives: epoch, offset (false: stored before, nobody knows where), the newest offset of the stream, 1 if it was stored before
local history, counter = KEYS[1], KEYS[2]
local node, seq = 'n:' .. ARGV[2], ARGV[3]

-- A node sends a store again when the answer was lost. Its stores of a stream come in order.
local before = redis.call('HGET', counter, node)
if before then
    local known, offset = string.match(before, '^(%d+) (%d+)')
    if tonumber(known) >= tonumber(seq) then
        return { epoch, known == seq and offset or false, redis.call('HGET', counter, 'o'), 1 }
    end
end

local time = redis.call('TIME')
local known = redis.call('HMGET', counter, 'o', 'e')
if not known[1] then
    -- A counter that was forgotten must not give out a number again: it begins with the time in microseconds.
    local base = time[1] .. string.format('%06d', time[2])
    redis.call('HSET', counter, 'o', base, 'b', base, 'e', epoch)
    redis.call('DEL', history)
elseif known[2] ~= epoch then
    redis.call('HSET', counter, 'e', epoch, 'f', known[1])
end
local offset = string.format('%.0f', redis.call('HINCRBY', counter, 'o', 1))
local limit, ttl = tonumber(ARGV[7]), tonumber(ARGV[8])
if limit > 0 then
    local entry = { 't', time[1], 'n', ARGV[2], 'q', seq, 'm', ARGV[4] }
    if ARGV[5] ~= '' then
        entry[#entry + 1] = 'k'
        entry[#entry + 1] = ARGV[5]
    end
    if ARGV[6] ~= '' then
        entry[#entry + 1] = 'x'
        entry[#entry + 1] = ARGV[6]
    end
    redis.call('XADD', history, 'MAXLEN', '=', limit, offset .. '-0', unpack(entry))
    redis.call('PEXPIRE', history, ttl)
end

redis.call('HSET', counter, node, seq .. ' ' .. offset .. ' ' .. time[1])
redis.call('PEXPIRE', counter, 10 * ttl)
if redis.call('HLEN', counter) > 32 then
    -- Nodes that have not stored anything for long will not send it again.
    local fields = redis.call('HGETALL', counter)
    for i = 1, #fields, 2 do
        local at = string.match(fields[i + 1], ' (%d+)$')
        if string.sub(fields[i], 1, 2) == 'n:' and at and tonumber(at) + 600 < tonumber(time[1]) then
            redis.call('HDEL', counter, fields[i])
        end
    end
end

if ARGV[9] ~= '' then
    redis.call('PUBLISH', ARGV[9], ARGV[10] .. ',"offset":' .. offset .. ',"epoch":"' .. epoch .. '","node":"' .. ARGV[2] .. '"}')
end
return { epoch, offset, offset, 0 }

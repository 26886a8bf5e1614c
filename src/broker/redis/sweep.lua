-- Everybody of a node goes from a stream: the node does not live any more.
--
-- KEYS: who is present on it. ARGV: node, channel to publish the events to ('' for none), the stream's name as JSON
-- Gives: the ids of whom others are to be told
local people = KEYS[1]
local gone = {}
local fields = redis.call('HGETALL', people)
for i = 1, #fields, 2 do
    local field, value = fields[i], fields[i + 1]
    if string.sub(field, 1, 2) == 's:' and string.sub(value, 1, #ARGV[1] + 1) == ARGV[1] .. ' ' then
        local id = string.sub(value, #ARGV[1] + 2)
        redis.call('HDEL', people, field)
        if redis.call('HINCRBY', people, 'c:' .. id, -1) <= 0 then
            redis.call('HDEL', people, 'c:' .. id, 'i:' .. id)
            gone[#gone + 1] = id
            if ARGV[2] ~= '' then
                local event = '{"id":' .. cjson.encode(id) .. ',"type":"leave"}'
                redis.call('PUBLISH', ARGV[2], '{"stream":' .. ARGV[3] .. ',"data":' .. cjson.encode(event)
                    .. ',"meta":{"broadcast_type":"presence","transient":true}}')
            end
        end
    end
end
return gone

-- Begins each script about what is kept of a stream.
--
-- KEYS: the history, the counter, and the epoch where all keys are on one server. ARGV: the epoch that the caller knows
local epoch = ARGV[1]
if KEYS[3] then
    epoch = redis.call('GET', KEYS[3])
    if not epoch then
        return redis.error_reply('NOEPOCH nothing of what was kept is there')
    end
end

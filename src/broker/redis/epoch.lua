-- Gives the storage a new epoch unless it has got another one meanwhile.
--
-- KEYS: the epoch. ARGV: the epoch that is over ('' for none), a new one.
-- Gives: the epoch from now on
local epoch = redis.call('GET', KEYS[1])
if not epoch or epoch == ARGV[1] then
    redis.call('SET', KEYS[1], ARGV[2])
    return ARGV[2]
end
return epoch

"""The changes to tasks in Redis, each one atomic.

Keys, all under `tasks:`

    task:<id>      hash: the task
    queue:<type>   sorted set: PENDING tasks, by priority and then by age
    delayed        sorted set: PENDING tasks that are tried again later, by that time
    deadlines      sorted set: tasks that are not finished, by when waiting becomes pointless
    active         hash: ASSIGNED and IN_PROGRESS tasks and their agents
    agents         set: the agents' names
    clock          seconds while somebody dispatched; deadlines and delays are by this clock
    sequence       counter of submissions
    wake           sorted set: not empty since a submission; what an idle dispatcher waits for
    lease, fence   who dispatches, and how often that has changed

Whoever takes the lease raises the fence, and each change by a dispatcher checks that the fence
is still its own: one that was paused and overtaken can change nothing any more.

No host's clock decides: a Pi that starts days behind and steps, Redis' host among them, would
fail every task that waits. The dispatcher tells how many seconds it has seen pass.
"""

from __future__ import annotations

from prime_spark.runtime.shelf import MAKE_ROOM

PREFIX = "tasks:"
TASK = f"{PREFIX}task:"
QUEUE = f"{PREFIX}queue:"
DELAYED = f"{PREFIX}delayed"
DEADLINES = f"{PREFIX}deadlines"
ACTIVE = f"{PREFIX}active"
AGENTS = f"{PREFIX}agents"
SEQUENCE = f"{PREFIX}sequence"
CLOCK = f"{PREFIX}clock"
WAKE = f"{PREFIX}wake"
LEASE = f"{PREFIX}lease"
FENCE = f"{PREFIX}fence"
HEARTBEAT = "agent:"

# What a fenced script answers to one that was overtaken.
FENCED = "FENCED"

# Of before there was one, or the first dispatcher: what hosts then took for the time.
_CLOCK = f"""
local function clock()
  return tonumber(redis.call('GET', '{CLOCK}') or redis.call('TIME')[1])
end
"""

# KEYS task queue sequence deadlines wake; ARGV id digest max_queued rank seconds bytes field
# value... What is known is written again: who asks waits until this connection's writes are on
# disk.
SUBMIT = (
    MAKE_ROOM
    + _CLOCK
    + """
local known = redis.call('HGET', KEYS[1], 'digest')
if known then
  redis.call('HSET', KEYS[1], 'digest', known)
  return known == ARGV[2] and 'known' or 'conflict'
end
if redis.call('ZCARD', KEYS[2]) >= tonumber(ARGV[3]) then
  return 'full'
end
if not make_room(tonumber(ARGV[6])) then
  return 'room'
end
redis.call('ZADD', KEYS[5], 0, 'submitted')
local number = redis.call('INCR', KEYS[3])
-- Ranks are far enough apart for 2^48 tasks; a double holds every value exactly.
local score = string.format('%.0f', tonumber(ARGV[4]) * 2^48 + number)
redis.call('HSET', KEYS[1], 'digest', ARGV[2], 'score', score, unpack(ARGV, 7))
redis.call('ZADD', KEYS[2], score, ARGV[1])
redis.call('ZADD', KEYS[4], clock() + ARGV[5], ARGV[1])
return 'new'
"""
)

# KEYS lease fence; ARGV holder milliseconds
ACQUIRE = """
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then
  return 0
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return redis.call('INCR', KEYS[2])
"""

# KEYS lease fence; ARGV holder milliseconds fence. A lease that ran out unnoticed is renewed too:
# the fence tells that nobody has held it since.
RENEW = """
local holder = redis.call('GET', KEYS[1])
if redis.call('GET', KEYS[2]) ~= ARGV[3] or (holder and holder ~= ARGV[1]) then
  return 0
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""

# KEYS lease; ARGV holder
RELEASE = """
if redis.call('GET', KEYS[1]) == ARGV[1] then
  redis.call('DEL', KEYS[1])
end
return 1
"""

_FENCE = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return redis.error_reply('-FENCED another dispatcher has taken over')
end
"""

# KEYS fence agents; ARGV fence name...
ANNOUNCE = (
    _FENCE
    + """
redis.call('DEL', KEYS[2])
if #ARGV > 1 then
  redis.call('SADD', KEYS[2], unpack(ARGV, 2))
end
return 1
"""
)

# KEYS fence task queue active; ARGV fence id agent instance now. Returns the attempt, 0 when the
# task does not wait any more.
ASSIGN = (
    _FENCE
    + """
if redis.call('ZREM', KEYS[3], ARGV[2]) == 0 then
  return 0
end
redis.call('HSET', KEYS[2], 'state', 'ASSIGNED', 'agent', ARGV[3], 'instance', ARGV[4],
  'updated', ARGV[5])
redis.call('HSET', KEYS[4], ARGV[2], ARGV[3])
return redis.call('HINCRBY', KEYS[2], 'attempts', 1)
"""
)

# Only what is under way as this very attempt is changed.
_UNDER_WAY = """
local task = redis.call('HMGET', KEYS[2], 'state', 'attempts')
if (task[1] ~= 'ASSIGNED' and task[1] ~= 'IN_PROGRESS') or task[2] ~= ARGV[3] then
  return 0
end
"""

# KEYS fence task; ARGV fence id attempt now
STARTED = (
    _FENCE
    + _UNDER_WAY
    + """
redis.call('HSET', KEYS[2], 'state', 'IN_PROGRESS', 'updated', ARGV[4])
return 1
"""
)

# KEYS fence task active deadlines; ARGV fence id attempt now keep_seconds state field value
FINISH = (
    _FENCE
    + _UNDER_WAY
    + """
-- What attempts before said is not the end's, and nobody needs the payload any more.
redis.call('HDEL', KEYS[2], 'error', 'payload')
redis.call('HSET', KEYS[2], 'state', ARGV[6], ARGV[7], ARGV[8], 'updated', ARGV[4],
  'finished', ARGV[4])
redis.call('EXPIRE', KEYS[2], ARGV[5])
redis.call('HDEL', KEYS[3], ARGV[2])
redis.call('ZREM', KEYS[4], ARGV[2])
return 1
"""
)

# KEYS fence task active delayed; ARGV fence id attempt now seconds error tried counted(0/1)
AGAIN = (
    _FENCE
    + _CLOCK
    + _UNDER_WAY
    + """
redis.call('HSET', KEYS[2], 'state', 'PENDING', 'agent', '', 'error', ARGV[6], 'tried', ARGV[7],
  'updated', ARGV[4])
if ARGV[8] == '0' then
  redis.call('HINCRBY', KEYS[2], 'attempts', -1)
end
redis.call('HDEL', KEYS[3], ARGV[2])
redis.call('ZADD', KEYS[4], clock() + ARGV[5], ARGV[2])
return 1
"""
)

# KEYS fence delayed deadlines clock; ARGV fence now keep_seconds error task-prefix queue-prefix
# elapsed. Puts what is due back into its queue, and fails what has waited too long. The clock
# stands still while no task waits for it.
DUE = (
    _FENCE
    + _CLOCK
    + """
if redis.call('ZCARD', KEYS[2]) + redis.call('ZCARD', KEYS[3]) == 0 then
  return 0
end
local due = string.format('%.3f', clock() + ARGV[7])
redis.call('SET', KEYS[4], due)
for _, id in ipairs(redis.call('ZRANGE', KEYS[2], '-inf', due, 'BYSCORE', 'LIMIT', 0, 100)) do
  local task = redis.call('HMGET', ARGV[5] .. id, 'type', 'score')
  if task[1] then
    redis.call('ZADD', ARGV[6] .. task[1], task[2], id)
  end
  redis.call('ZREM', KEYS[2], id)
end
local expired = 0
for _, id in ipairs(redis.call('ZRANGE', KEYS[3], '-inf', due, 'BYSCORE', 'LIMIT', 0, 100)) do
  local task = redis.call('HMGET', ARGV[5] .. id, 'type', 'state', 'error')
  if task[2] == 'PENDING' then
    local error = ARGV[4]
    if task[3] and task[3] ~= '' then
      error = error .. '; last attempt: ' .. task[3]
    end
    redis.call('ZREM', ARGV[6] .. task[1], id)
    redis.call('ZREM', KEYS[2], id)
    redis.call('HSET', ARGV[5] .. id, 'state', 'FAILED', 'error', error, 'updated', ARGV[2],
      'finished', ARGV[2])
    redis.call('HDEL', ARGV[5] .. id, 'payload')
    redis.call('EXPIRE', ARGV[5] .. id, ARGV[3])
    redis.call('ZREM', KEYS[3], id)
    expired = expired + 1
  elseif not task[2] then
    redis.call('ZREM', KEYS[3], id)
  end
end
return expired
"""
)

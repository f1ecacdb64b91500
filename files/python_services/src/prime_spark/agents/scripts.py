"""The changes to tasks in Redis, each one atomic.

Keys, all under `tasks:`

    task:<id>      hash: the task
    queue:<type>   sorted set: PENDING tasks, by priority and then by age
    delayed        sorted set: PENDING tasks that are tried again later, by that time
    deadlines      sorted set: tasks that are not finished, by when waiting becomes pointless
    active         hash: ASSIGNED and IN_PROGRESS tasks and their agents
    agents         set: the agents' names
    sequence       counter of submissions
    lease, fence   who dispatches, and how often that has changed

Whoever takes the lease raises the fence, and each change by a dispatcher checks that the fence
is still its own: one that was paused and overtaken can change nothing any more.
"""

from __future__ import annotations

PREFIX = "tasks:"
TASK = f"{PREFIX}task:"
QUEUE = f"{PREFIX}queue:"
DELAYED = f"{PREFIX}delayed"
DEADLINES = f"{PREFIX}deadlines"
ACTIVE = f"{PREFIX}active"
AGENTS = f"{PREFIX}agents"
SEQUENCE = f"{PREFIX}sequence"
LEASE = f"{PREFIX}lease"
FENCE = f"{PREFIX}fence"
BEAT = "agent:"

# What a fenced script answers to one that was overtaken.
FENCED = "FENCED"

# KEYS task queue sequence deadlines; ARGV id digest max_queued rank deadline field value...
SUBMIT = """
local known = redis.call('HGET', KEYS[1], 'digest')
if known then
  return known == ARGV[2] and 'known' or 'conflict'
end
if redis.call('ZCARD', KEYS[2]) >= tonumber(ARGV[3]) then
  return 'full'
end
local number = redis.call('INCR', KEYS[3])
-- Ranks are far enough apart for 2^48 tasks; a double holds every value exactly.
local score = string.format('%.0f', tonumber(ARGV[4]) * 2^48 + number)
redis.call('HSET', KEYS[1], 'digest', ARGV[2], 'score', score, unpack(ARGV, 6))
redis.call('ZADD', KEYS[2], score, ARGV[1])
redis.call('ZADD', KEYS[4], ARGV[5], ARGV[1])
return 'new'
"""

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
redis.call('HSET', KEYS[2], 'state', ARGV[6], ARGV[7], ARGV[8], 'updated', ARGV[4],
  'finished', ARGV[4])
redis.call('EXPIRE', KEYS[2], ARGV[5])
redis.call('HDEL', KEYS[3], ARGV[2])
redis.call('ZREM', KEYS[4], ARGV[2])
return 1
"""
)

# KEYS fence task active delayed; ARGV fence id attempt now due error tried counted(0/1)
AGAIN = (
    _FENCE
    + _UNDER_WAY
    + """
redis.call('HSET', KEYS[2], 'state', 'PENDING', 'agent', '', 'error', ARGV[6], 'tried', ARGV[7],
  'updated', ARGV[4])
if ARGV[8] == '0' then
  redis.call('HINCRBY', KEYS[2], 'attempts', -1)
end
redis.call('HDEL', KEYS[3], ARGV[2])
redis.call('ZADD', KEYS[4], ARGV[5], ARGV[2])
return 1
"""
)

# KEYS fence delayed deadlines; ARGV fence now keep_seconds error task-prefix queue-prefix. Puts
# what is due back into its queue, and fails what has waited too long.
DUE = (
    _FENCE
    + """
for _, id in ipairs(redis.call('ZRANGE', KEYS[2], '-inf', ARGV[2], 'BYSCORE', 'LIMIT', 0, 100)) do
  local task = redis.call('HMGET', ARGV[5] .. id, 'type', 'score')
  if task[1] then
    redis.call('ZADD', ARGV[6] .. task[1], task[2], id)
  end
  redis.call('ZREM', KEYS[2], id)
end
local expired = 0
for _, id in ipairs(redis.call('ZRANGE', KEYS[3], '-inf', ARGV[2], 'BYSCORE', 'LIMIT', 0, 100)) do
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

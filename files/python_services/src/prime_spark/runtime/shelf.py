"""Values in Redis that cannot fill it: quotas by owner and in all, and room for the fleet alone.

A Redis that is full refuses logins, heartbeats and the ends of tasks as well. So what users put
there goes through scripts that keep a quarter of Redis' memory free: only the fleet's own
bookkeeping may use that. Where room is short the cached answers of language models go first.

Beside the values, under a shelf's prefix

    .sizes   hash: name of a value to its size and its account
    .ends    sorted set: names, by when their values expire
    .used    hash: bytes by account, `*` for all

All change together with the value, in one script. What has expired is given back by the next
`keep`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol, cast

import msgspec
from redis.asyncio import Redis

CACHE = "llm:cache:"
# A value counts with what Redis needs to keep it and to account for it.
ENTRY_BYTES = 1024

_FREE = "the quarter of its memory that is left is for the fleet itself"

# `make_room(bytes)` tells whether so much may be taken; the cache gives way, the oldest first.
MAKE_ROOM = f"""
local function forget(prefix, name)
  local kept = redis.call('HGET', prefix .. '.sizes', name) or ''
  local size, account = string.match(kept, '^(%d+) (.*)$')
  redis.call('ZREM', prefix .. '.ends', name)
  if size then
    redis.call('HDEL', prefix .. '.sizes', name)
    for _, name in ipairs({{account, '*'}}) do
      if redis.call('HINCRBY', prefix .. '.used', name, -size) <= 0 then
        redis.call('HDEL', prefix .. '.used', name)
      end
    end
  end
end

local function evict(prefix, count)
  local names = redis.call('ZRANGE', prefix .. '.ends', 0, count - 1)
  for _, name in ipairs(names) do
    redis.call('DEL', prefix .. name)
    forget(prefix, name)
  end
  return #names > 0
end

local function make_room(bytes)
  repeat
    local info = redis.call('INFO', 'memory')
    local most = tonumber(string.match(info, 'maxmemory:(%d+)'))
    local used = tonumber(string.match(info, 'used_memory:(%d+)'))
    if most == 0 or used + bytes <= most * 0.75 then
      return true
    end
  until not evict('{CACHE}', 16)
  return false
end
"""

# KEYS prefix+name; ARGV prefix name value milliseconds size account account-limit limit evicts
# absent. Answers 'kept', 'there', or which limit would be passed and what is used of it.
_KEEP = (
    MAKE_ROOM
    + """
local prefix, name, size, account = ARGV[1], ARGV[2], tonumber(ARGV[5]), ARGV[6]
if ARGV[10] == '1' and redis.call('EXISTS', KEYS[1]) == 1 then
  return {'there', 0}
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local function give_back()
  local names = redis.call('ZRANGE', prefix .. '.ends', '-inf', now, 'BYSCORE', 'LIMIT', 0, 500)
  for _, name in ipairs(names) do
    forget(prefix, name)
  end
  return #names > 0
end

-- What others use, or what the account uses, without the value that is replaced.
local function used(name_of_account)
  local kept = redis.call('HGET', prefix .. '.sizes', name) or ''
  local old, owner = string.match(kept, '^(%d+) (.*)$')
  local bytes = tonumber(redis.call('HGET', prefix .. '.used', name_of_account) or 0)
  if old and (name_of_account == '*' or name_of_account == owner) then
    bytes = bytes - old
  end
  return bytes
end

give_back()
for limit, of in pairs({[7] = account, [8] = '*'}) do
  while used(of) + size > tonumber(ARGV[limit]) do
    if not (give_back() or (ARGV[9] == '1' and evict(prefix, 4))) then
      return {limit == 7 and 'owner' or 'all', used(of)}
    end
  end
end
if not make_room(size) then
  return {'room', 0}
end
forget(prefix, name)
redis.call('SET', KEYS[1], ARGV[3], 'PX', ARGV[4])
redis.call('HSET', prefix .. '.sizes', name, ARGV[5] .. ' ' .. account)
redis.call('ZADD', prefix .. '.ends', now + ARGV[4], name)
redis.call('HINCRBY', prefix .. '.used', account, size)
redis.call('HINCRBY', prefix .. '.used', '*', size)
return {'kept', 0}
"""
)

# KEYS prefix+name; ARGV prefix name
_DROP = (
    MAKE_ROOM
    + """
forget(ARGV[1], ARGV[2])
return redis.call('DEL', KEYS[1])
"""
)


class Refusal(msgspec.Struct, frozen=True):
    """Why a value was not kept. Bytes; `used` and `limit` are 0 where the `room` is short."""

    reason: Literal["owner", "all", "room"]
    size: int
    used: int = 0
    limit: int = 0

    def __str__(self) -> str:
        if self.reason == "room":
            return f"Redis has no room: {_FREE}"
        whose = "its owner's values" if self.reason == "owner" else "all values"
        return f"{whose} take {self.used} of {self.limit} bytes, and it needs {self.size}"


class _Script(Protocol):
    async def __call__(self, *, keys: Sequence[str], args: Sequence[Any]) -> Any: ...


class Shelf:
    """Strings under one prefix. `evicts`: what ends soonest makes room for what is new.

    The limits are in bytes. Every method may raise one of REDIS_ERRORS.
    """

    def __init__(
        self,
        redis: Redis,
        prefix: str,
        *,
        owner_bytes: int,
        all_bytes: int,
        evicts: bool = False,
    ) -> None:
        self._redis = redis
        self._prefix = prefix
        self._limits = {"owner": owner_bytes, "all": all_bytes}
        self._evicts = evicts
        self._keep: _Script = redis.register_script(_KEEP)
        self._drop: _Script = redis.register_script(_DROP)

    async def get(self, name: str) -> bytes | None:
        """Return a value, or None."""
        return cast("bytes | None", await self._redis.get(self._prefix + name))

    async def keep(
        self, name: str, value: bytes, seconds: float, account: str, *, absent: bool = False
    ) -> Refusal | None:
        """Keep a value, unless there is one already with `absent`; return why it was not."""
        size = len(value) + ENTRY_BYTES
        arguments = [self._prefix, name, value, int(seconds * 1000), size, account]
        arguments += [*self._limits.values(), int(self._evicts), int(absent)]
        answer, used = await self._keep(keys=[self._prefix + name], args=arguments)
        reason = answer.decode()
        if reason in {"kept", "there"}:
            return None
        return Refusal(reason, size, used, self._limits.get(reason, 0))

    async def drop(self, name: str) -> bool:
        """Remove a value; return whether there was one."""
        return bool(await self._drop(keys=[self._prefix + name], args=[self._prefix, name]))

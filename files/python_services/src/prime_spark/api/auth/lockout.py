"""Locks out who gives wrong passwords, for a time that doubles.

Attempts count twice. Per account and address: a stranger who guesses locks out their own address,
and the owner comes in from theirs. And per account from all addresses together, with a higher
bound, against guesses from many; an address that the account was logged in from before neither
counts there nor is locked by it. Sessions that exist go on either way.

An attempt counts as failed until it has succeeded, and an attempt beyond the free ones has to take
the lock first: guesses made at the same moment cannot slip through together. Names that do not
exist are treated alike, so that nothing tells them apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

from redis.asyncio import Redis

from prime_spark.accounts.lockout import LockedError, LockoutConfig, names_of
from prime_spark.api.auth.sessions import SessionsUnavailableError
from prime_spark.runtime.redis_client import REDIS_ERRORS, describe_redis_error

# KEYS failures-here lock-here failures-anywhere lock-anywhere known
# ARGV free-here free-anywhere first-ms max-ms forget-seconds
# Returns 0, or for how many milliseconds no attempt may be made.
_ATTEMPT = """
local counted = redis.call('EXISTS', KEYS[5]) == 1 and 1 or 2
for n = 1, counted do
  local left = redis.call('PTTL', KEYS[2 * n])
  if left > 0 then
    return left
  end
end
for n = 1, counted do
  local beyond = redis.call('INCR', KEYS[2 * n - 1]) - tonumber(ARGV[n])
  redis.call('EXPIRE', KEYS[2 * n - 1], ARGV[5])
  if beyond >= 0 then
    local ms = math.min(tonumber(ARGV[3]) * 2 ^ math.min(beyond, 32), tonumber(ARGV[4]))
    redis.call('SET', KEYS[2 * n], '', 'PX', string.format('%d', ms))
  end
end
return 0
"""

# KEYS as above; ARGV known-seconds
_SUCCEEDED = """
redis.call('DEL', KEYS[1], KEYS[2])
if redis.call('EXISTS', KEYS[5]) == 0 then
  if tonumber(redis.call('GET', KEYS[3]) or '0') > 1 then
    redis.call('DECR', KEYS[3])
  else
    redis.call('DEL', KEYS[3])
  end
end
redis.call('SET', KEYS[5], '', 'EX', ARGV[1])
"""


class _Script(Protocol):
    async def __call__(self, *, keys: Sequence[str], args: Sequence[Any]) -> Any: ...


class Lockout:
    """Counts attempts, in Redis. Every method may raise SessionsUnavailableError."""

    def __init__(self, redis: Redis, config: LockoutConfig) -> None:
        self._config = config
        self._attempt: _Script = redis.register_script(_ATTEMPT)
        self._succeeded: _Script = redis.register_script(_SUCCEEDED)

    async def attempt(self, username: str, address: str) -> None:
        """Note an attempt; raises LockedError when it may not be made."""
        config = self._config
        arguments = [
            config.failures,
            config.failures_anywhere,
            config.first_seconds * 1000,
            config.max_seconds * 1000,
            config.forget_seconds,
        ]
        try:
            left = await self._attempt(keys=_keys(username, address), args=arguments)
        except REDIS_ERRORS as error:
            raise SessionsUnavailableError(describe_redis_error(error)) from error
        if left:
            raise LockedError(math.ceil(left / 1000))

    async def succeeded(self, username: str, address: str) -> None:
        """Forget what was before at this address, and know it from now on."""
        try:
            await self._succeeded(keys=_keys(username, address), args=[self._config.known_seconds])
        except REDIS_ERRORS as error:
            raise SessionsUnavailableError(describe_redis_error(error)) from error


def _keys(username: str, address: str) -> list[str]:
    account, here = names_of(username, address)
    return [
        f"auth:failures:{here}",
        f"auth:lock:{here}",
        f"auth:failures:{account}",
        f"auth:lock:{account}",
        f"auth:known:{here}",
    ]

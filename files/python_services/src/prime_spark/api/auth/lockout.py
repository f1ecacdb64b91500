"""Locks an account after wrong passwords, for a time that doubles.

An attempt counts as failed until it has succeeded, and an attempt beyond the free ones has to take
the lock first: guesses made at the same moment cannot slip through together. Names that do not
exist are treated alike, so that nothing tells them apart.
"""

from __future__ import annotations

import hashlib
import math

from redis.asyncio import Redis

from prime_spark.api.auth.sessions import SessionsUnavailableError
from prime_spark.api.settings import LockoutConfig
from prime_spark.runtime.redis_client import REDIS_ERRORS, describe_redis_error

_FAILURES = "auth:failures:"
_LOCK = "auth:lock:"
_MAX_DOUBLINGS = 32


class LockedError(Exception):
    """The account is locked for `seconds` more."""

    def __init__(self, seconds: int) -> None:
        super().__init__(f"locked for {seconds} s")
        self.seconds = seconds


class Lockout:
    """Counts attempts per account, in Redis. Every method may raise SessionsUnavailableError."""

    def __init__(self, redis: Redis, config: LockoutConfig) -> None:
        self._redis = redis
        self._config = config

    async def attempt(self, username: str) -> None:
        """Note an attempt; raises LockedError when it may not be made."""
        failures, lock = _keys(username)
        try:
            async with self._redis.pipeline(transaction=True) as pipeline:
                pipeline.pttl(lock)
                pipeline.incr(failures)
                pipeline.expire(failures, self._config.forget_seconds)
                left, count, _ = await pipeline.execute()
            if left > 0:
                await self._redis.decr(failures)  # it was not made, so it does not count
                raise LockedError(math.ceil(left / 1000))
            milliseconds = self._lock_milliseconds(count)
            if milliseconds and not await self._redis.set(lock, b"", px=milliseconds, nx=True):
                await self._redis.decr(failures)
                raise LockedError(math.ceil(milliseconds / 1000))
        except REDIS_ERRORS as error:
            raise SessionsUnavailableError(describe_redis_error(error)) from error

    async def succeeded(self, username: str) -> None:
        """Forget what was before: the password was right."""
        try:
            await self._redis.delete(*_keys(username))
        except REDIS_ERRORS as error:
            raise SessionsUnavailableError(describe_redis_error(error)) from error

    def _lock_milliseconds(self, count: int) -> int:
        """Return how long the account is locked should attempt number `count` fail."""
        beyond = count - self._config.failures
        if beyond < 0:
            return 0
        seconds = self._config.first_seconds * 2 ** min(beyond, _MAX_DOUBLINGS)
        return int(min(seconds, self._config.max_seconds) * 1000)


def _keys(username: str) -> tuple[str, str]:
    """Return the keys of an account; whatever was typed as a name does not get into Redis."""
    digest = hashlib.sha256(username.encode()).hexdigest()[:32]
    return _FAILURES + digest, _LOCK + digest

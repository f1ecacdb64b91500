"""Tier 1: Redis, with a TTL."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, TypeVar, cast

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from prime_spark.memory.tier import Entry, TierDownError
from prime_spark.runtime.redis_client import REDIS_ERRORS, describe_redis_error

T = TypeVar("T")

PREFIX = "memory:"

# The first byte of what is stored says what the rest is.
_JSON = b"j"
_BYTES = b"b"


class RedisTier:
    """Keeps each entry as one string `memory:<key>`. The client bounds how long a call takes."""

    name = "redis"

    def __init__(self, client: Redis, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._client = client

    async def get(self, key: str) -> Entry | None:
        """Return the entry, or None."""
        stored = cast("bytes | None", await self._call(self._client.get(PREFIX + key)))
        return None if stored is None else Entry(stored[1:], stored[:1] == _JSON)

    async def set(self, key: str, entry: Entry, ttl: int | None) -> None:
        """Keep `entry` for `ttl` seconds."""
        await self._call(self._client.set(PREFIX + key, _stored(entry), ex=ttl))

    async def copy(self, key: str, entry: Entry, ttl: int) -> None:
        """Keep `entry` for `ttl` seconds unless the key has a value already."""
        await self._call(self._client.set(PREFIX + key, _stored(entry), ex=ttl, nx=True))

    async def delete(self, key: str) -> bool:
        """Remove the entry; return whether there was one."""
        return bool(await self._call(self._client.delete(PREFIX + key)))

    async def check(self) -> None:
        """Raise TierDownError when Redis does not answer."""
        await self._call(cast("Awaitable[Any]", self._client.ping()))

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _call(self, call: Awaitable[T]) -> T:
        try:
            return await call
        except REDIS_ERRORS as error:
            raise _down(error) from error


def _stored(entry: Entry) -> bytes:
    return (_JSON if entry.json else _BYTES) + entry.data


def _down(error: BaseException) -> TierDownError:
    return TierDownError(describe_redis_error(error), answers=isinstance(error, ResponseError))

"""Tier 1: Redis, with a TTL."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TypeVar

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from prime_spark.memory.errors import QuotaError
from prime_spark.memory.settings import FastTierConfig
from prime_spark.memory.tier import Entry, TierDownError
from prime_spark.runtime.redis_client import REDIS_ERRORS, describe_redis_error
from prime_spark.runtime.shelf import Refusal, Shelf

T = TypeVar("T")

PREFIX = "memory:"
# No user's key begins with a dot.
_CHECK = ".health"
_CHECK_SECONDS = 60
# Accounts; a user's is `user:` and the name.
_COPIES = "copies"
_FLEET = "fleet"

# The first byte of what is stored says what the rest is.
_JSON = b"j"
_BYTES = b"b"


class RedisTier:
    """Keeps each entry as one string `memory:<key>`. The client bounds how long a call takes."""

    name = "redis"

    def __init__(self, client: Redis, config: FastTierConfig) -> None:
        self.max_bytes = config.max_bytes
        self._client = client
        self._shelf = Shelf(
            client, PREFIX, owner_bytes=config.user_bytes, all_bytes=config.all_bytes
        )

    async def get(self, key: str) -> Entry | None:
        """Return the entry, or None."""
        stored = await self._call(self._shelf.get(key))
        return None if stored is None else Entry(stored[1:], stored[:1] == _JSON)

    async def set(self, key: str, entry: Entry, ttl: int | None, owner: str) -> None:
        """Keep `entry` for `ttl` seconds."""
        keeping = self._shelf.keep(key, _stored(entry), ttl or 0, f"user:{owner}")
        if (refusal := await self._call(keeping)) is not None:
            raise _no_room(refusal)

    async def copy(self, key: str, entry: Entry, ttl: int) -> None:
        """Keep `entry` for `ttl` seconds unless the key has a value, or copies no more room."""
        await self._call(self._shelf.keep(key, _stored(entry), ttl, _COPIES, absent=True))

    async def delete(self, key: str) -> bool:
        """Remove the entry; return whether there was one."""
        return await self._call(self._shelf.drop(key))

    async def check(self) -> None:
        """Raise TierDownError when Redis does not take a value."""
        refusal = await self._call(self._shelf.keep(_CHECK, b"", _CHECK_SECONDS, _FLEET))
        if refusal is not None:
            raise TierDownError(f"takes no value: {refusal}", answers=True)

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


def _no_room(refusal: Refusal) -> QuotaError:
    return QuotaError(
        1, "redis", refusal.reason, used=refusal.used, limit=refusal.limit, size=refusal.size
    )


def _down(error: BaseException) -> TierDownError:
    return TierDownError(describe_redis_error(error), answers=isinstance(error, ResponseError))

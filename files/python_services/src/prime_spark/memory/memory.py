"""Values by key in three tiers: Redis with a TTL, the NAS, PostgreSQL in the cloud."""

from __future__ import annotations

import asyncio
import re
import time
from collections import OrderedDict
from typing import Any, Self

import msgspec
import structlog

from prime_spark.memory.database_tier import DatabaseTier
from prime_spark.memory.errors import (
    MemoryKeyError,
    MemoryValueError,
    TierUnavailableError,
    ValueTooLargeError,
)
from prime_spark.memory.nas_tier import NasTier
from prime_spark.memory.redis_tier import RedisTier
from prime_spark.memory.settings import FastTierConfig, MemoryConfig
from prime_spark.memory.tier import Entry, Guard, Tier
from prime_spark.runtime.redis_client import shared_redis_client

_log = structlog.get_logger(__name__)

FAST = 1
KEY = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.:-]{0,126}[A-Za-z0-9_])?")

# Keys whose outdated value could not be removed from a tier that was down.
_MAX_OUTDATED = 10_000


class Found(msgspec.Struct, frozen=True):
    """A value and the tier it was found in. `data` is JSON text if `is_json`, else the bytes."""

    data: bytes
    tier: int
    is_json: bool

    @property
    def value(self) -> Any:
        """What was given to `set`."""
        return msgspec.json.decode(self.data) if self.is_json else self.data


class TierHealth(msgspec.Struct, frozen=True):
    """State of a tier; `reason` is one line while it is not ok."""

    name: str
    ok: bool
    reason: str
    seconds: float


class Memory:
    """The three tiers as one memory.

    `get` looks through tiers 1, 2, 3 and copies what it finds further down into tier 1 for a
    short while. `set` writes one tier and removes the key from the tiers before it, so that the
    next `get` sees the new value; what is in the tiers after it shows again once the new value
    has expired. A tier that is down concerns only calls that need it.
    """

    def __init__(
        self, redis: RedisTier, nas: Tier, database: Tier, fast: FastTierConfig, rest: float = 2.0
    ) -> None:
        self._redis = redis
        self._fast = fast
        tiers: tuple[Tier, ...] = (redis, nas, database)
        self._guards = {n: Guard(n, tier, rest) for n, tier in enumerate(tiers, start=1)}
        # Counts writes as they begin and end: a `get` that one overlaps copies nothing.
        self._writes = 0
        self._outdated: dict[int, OrderedDict[str, None]] = {n: OrderedDict() for n in self._guards}

    @classmethod
    def from_config(cls, config: MemoryConfig) -> Self:
        """Build the tiers; connects to nothing yet."""
        client = shared_redis_client(config.redis, timeout=config.fast.timeout_seconds)
        return cls(
            RedisTier(client, config.fast.max_bytes),
            NasTier(config.nas),
            DatabaseTier(config.database),
            config.fast,
            config.rest_seconds,
        )

    async def set(self, key: str, value: object, tier: int = FAST, ttl: int | None = None) -> None:
        """Keep `value` (bytes, or anything JSON can express) under `key` in `tier`.

        `ttl` in seconds is for tier 1, which has a default. Raises MemoryKeyError,
        MemoryValueError (ValueTooLargeError among them) or TierUnavailableError.
        """
        check_key(key)
        guard = self._guards.get(tier)
        if guard is None:
            raise MemoryValueError(
                f"tier {tier} does not exist: 1 (Redis), 2 (NAS), 3 (PostgreSQL)"
            )
        entry = _entry(value)
        if len(entry.data) > guard.tier.max_bytes:
            raise ValueTooLargeError(tier, len(entry.data), guard.tier.max_bytes)
        seconds = self._ttl(tier, ttl)
        self._writes += 1
        try:
            await guard.ask(guard.tier.set(key, entry, seconds))
            self._outdated[tier].pop(key, None)
            for number in range(FAST, tier):
                await self._remove_outdated(number, key)
        finally:
            self._writes += 1

    async def get(self, key: str) -> Found | None:
        """Return the value of `key` and where it was, or None.

        Raises MemoryKeyError; TierUnavailableError when nothing was found and a tier that may
        hold the key is down.
        """
        check_key(key)
        down: TierUnavailableError | None = None
        writes = self._writes
        for number, guard in self._guards.items():
            try:
                if key in self._outdated[number]:
                    await guard.ask(guard.tier.delete(key))
                    self._outdated[number].pop(key, None)
                    continue
                entry = await guard.ask(guard.tier.get(key))
            except TierUnavailableError as error:
                down = down or error
                continue
            if entry is not None:
                if number != FAST and writes == self._writes:
                    await self._copy(key, entry)
                return Found(entry.data, number, entry.json)
        if down is not None:
            raise down
        return None

    async def delete(self, key: str) -> list[int]:
        """Remove `key` from all tiers; return the numbers of those that had it.

        Raises MemoryKeyError; TierUnavailableError when a tier is down, after the others have
        forgotten the key: the value may come back with that tier, so delete again then.
        """
        check_key(key)
        removed: list[int] = []
        down: TierUnavailableError | None = None
        self._writes += 1
        try:
            # Tier 1 last: a copy that a `get` made meanwhile goes with it.
            for number, guard in reversed(self._guards.items()):
                try:
                    if await guard.ask(guard.tier.delete(key)):
                        removed.append(number)
                    self._outdated[number].pop(key, None)
                except TierUnavailableError as error:
                    down = error
        finally:
            self._writes += 1
        if down is not None:
            raise down
        return sorted(removed)

    async def health(self) -> dict[int, TierHealth]:
        """Ask every tier, at the same time, whether it can be used."""
        await asyncio.gather(
            *(guard.ask(guard.tier.check()) for guard in self._guards.values()),
            return_exceptions=True,
        )
        now = time.time()
        return {
            number: TierHealth(
                guard.tier.name, guard.reason is None, guard.reason or "", now - guard.since
            )
            for number, guard in self._guards.items()
        }

    async def close(self) -> None:
        """Let go of the tiers' connections."""
        for guard in self._guards.values():
            await guard.tier.close()

    def _ttl(self, tier: int, ttl: int | None) -> int | None:
        if tier != FAST:
            if ttl is not None:
                raise MemoryValueError(
                    f"tier {tier} keeps values until they are deleted: a ttl is for tier 1 only"
                )
            return None
        if ttl is None:
            return self._fast.default_ttl
        if not 1 <= ttl <= self._fast.max_ttl:
            raise MemoryValueError(f"ttl {ttl} is not between 1 and {self._fast.max_ttl} seconds")
        return ttl

    async def _remove_outdated(self, number: int, key: str) -> None:
        """Remove `key` from a tier, or remember to do so before that tier is believed again."""
        guard = self._guards[number]
        try:
            await guard.ask(guard.tier.delete(key))
        except TierUnavailableError:
            outdated = self._outdated[number]
            outdated[key] = None
            if len(outdated) > _MAX_OUTDATED:
                outdated.popitem(last=False)

    async def _copy(self, key: str, entry: Entry) -> None:
        """Copy into tier 1 what was found further down, where it fits and tier 1 is there."""
        if len(entry.data) > self._redis.max_bytes:
            return
        try:
            guard = self._guards[FAST]
            await guard.ask(self._redis.copy(key, entry, self._fast.copy_seconds))
        except TierUnavailableError as error:
            _log.debug("not copied", error=str(error))


def check_key(key: str) -> None:
    """Raise MemoryKeyError unless every tier can hold `key`."""
    if not KEY.fullmatch(key) or key.endswith(".json"):
        raise MemoryKeyError(
            f"key {key[:80]!r} is not allowed: 1 to 128 letters, digits and _ . : - (first and "
            "last a letter, digit or _), not ending in .json"
        )


def _entry(value: object) -> Entry:
    if isinstance(value, bytes | bytearray | memoryview):
        return Entry(bytes(value), json=False)
    try:
        return Entry(msgspec.json.encode(value), json=True)
    except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError) as error:
        raise MemoryValueError(f"the value is neither bytes nor JSON: {error}") from error

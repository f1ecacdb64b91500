"""Values by key in three tiers: Redis with a TTL, the NAS, PostgreSQL in the cloud."""

from __future__ import annotations

import asyncio
import contextlib
import re
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Self
from weakref import WeakValueDictionary

import msgspec
import structlog

from prime_spark.memory.database_tier import DatabaseTier
from prime_spark.memory.errors import (
    MemoryKeyError,
    MemoryValueError,
    TierUnavailableError,
    ValueTooLargeError,
)
from prime_spark.memory.ledger import Ledger
from prime_spark.memory.nas_tier import NasTier
from prime_spark.memory.redis_tier import RedisTier
from prime_spark.memory.settings import FastTierConfig, MemoryConfig
from prime_spark.memory.tier import Entry, Guard, Tier
from prime_spark.runtime import finite_json
from prime_spark.runtime.redis_client import gathering_redis_client

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


class Memory:
    """The three tiers as one memory.

    `get` looks through tiers 1, 2, 3 and copies what it finds further down into tier 1 for a
    short while. `set` writes one tier and removes the key from the tiers before it, so that the
    next `get` sees the new value; what is in the tiers after it shows again once the new value
    has expired. A tier that is down concerns only calls that need it.
    """

    def __init__(
        self,
        redis: RedisTier,
        nas: Tier,
        database: Tier,
        *,
        ledger: Ledger,
        fast: FastTierConfig,
        cooldown: float = 2.0,
    ) -> None:
        self._redis = redis
        self._ledger = ledger
        self._fast = fast
        tiers: tuple[Tier, ...] = (redis, nas, database)
        self._guards = {n: Guard(n, tier, cooldown) for n, tier in enumerate(tiers, start=1)}
        self._changing: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()  # by key
        # Counts writes as they begin and end: a `get` that one overlaps copies nothing.
        self._writes = 0
        self._outdated: dict[int, set[str]] = {n: set() for n in self._guards}
        for number, key in ledger.outdated():
            self._outdated[number].add(key)

    @classmethod
    def from_config(cls, config: MemoryConfig) -> Self:
        """Build the tiers; connects to nothing yet."""
        client = gathering_redis_client(config.redis, timeout=config.fast.timeout_seconds)
        ledger = Ledger(Path(config.state))
        return cls(
            RedisTier(client, config.fast),
            NasTier(config.nas, ledger),
            DatabaseTier(config.database),
            ledger=ledger,
            fast=config.fast,
            cooldown=config.cooldown_seconds,
        )

    async def set(
        self,
        key: str,
        value: object,
        tier: int = FAST,
        ttl: int | None = None,
        *,
        owner: str = "",
    ) -> None:
        """Keep `value` (bytes, or anything JSON can express) under `key` in `tier`.

        `ttl` in seconds is for tier 1, which has a default. The value counts against the quota of
        `owner`. Raises MemoryKeyError, MemoryValueError (ValueTooLargeError among them),
        QuotaError or TierUnavailableError.
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
        # What only tier 1 is told, Redis does one after the other by itself.
        simple = tier == FAST and key not in self._outdated[FAST]
        async with self._writing() if simple else self._change(key):
            if key in self._outdated[tier]:
                # First, so that at no time the mark is on the new value, or off the old one.
                await self._remove(tier, key)
            await guard.ask(guard.tier.set(key, entry, seconds, owner))
            for number in range(FAST, tier):
                await self._remove_outdated(number, key)

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
                    async with self._alone(key):
                        if key in self._outdated[number]:
                            await self._remove(number, key)
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
        async with self._change(key):
            # Tier 1 last: a copy that a `get` made meanwhile goes with it.
            for number in reversed(self._guards):
                try:
                    if await self._remove(number, key):
                        removed.append(number)
                except TierUnavailableError as error:
                    down = error
        if down is not None:
            raise down
        return sorted(removed)

    async def health(self) -> dict[int, TierHealth]:
        """Ask every tier, at the same time, whether it can be used.

        One that is full and still answers is not well either, although `get` goes on asking it.
        """
        found = await asyncio.gather(*(self._reason(guard) for guard in self._guards.values()))
        return {
            number: TierHealth(guard.tier.name, reason is None, reason or "")
            for (number, guard), reason in zip(self._guards.items(), found, strict=True)
        }

    async def close(self) -> None:
        """Let go of the tiers' connections."""
        for guard in self._guards.values():
            await guard.tier.close()
        self._ledger.close()

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

    async def _reason(self, guard: Guard) -> str | None:
        try:
            await guard.ask(guard.tier.check())
        except TierUnavailableError as error:
            return error.reason
        return None

    def _alone(self, key: str) -> asyncio.Lock:
        """Return what is held while what the tiers have under `key` is changed."""
        return self._changing.setdefault(key, asyncio.Lock())

    @contextlib.asynccontextmanager
    async def _change(self, key: str) -> AsyncIterator[None]:
        """Write inside, as nobody else does with `key` meanwhile."""
        async with self._alone(key), self._writing():
            yield

    @contextlib.asynccontextmanager
    async def _writing(self) -> AsyncIterator[None]:
        """Write inside; a `get` that this overlaps copies nothing."""
        self._writes += 1
        try:
            yield
        finally:
            self._writes += 1

    async def _remove_outdated(self, number: int, key: str) -> None:
        """Remove `key` from a tier, or note to do so before that tier is believed again.

        Raises TierUnavailableError where that cannot be noted: the write must not count then.
        """
        try:
            await self._remove(number, key)
        except TierUnavailableError as error:
            outdated = self._outdated[number]
            if key in outdated:
                return
            if len(outdated) >= _MAX_OUTDATED:
                reason = f"{error.reason}; {len(outdated)} values are to be removed there already"
                raise TierUnavailableError(number, error.name, reason) from error
            try:
                await asyncio.to_thread(self._ledger.mark, number, key)
            except sqlite3.Error as refusal:
                reason = f"{error.reason}; that its value is outdated cannot be noted: {refusal}"
                raise TierUnavailableError(number, error.name, reason) from refusal
            outdated.add(key)

    async def _remove(self, number: int, key: str) -> bool:
        """Remove `key` from a tier, which is believed again; return whether it was there."""
        guard = self._guards[number]
        removed = await guard.ask(guard.tier.delete(key))
        if key in self._outdated[number]:
            try:
                await asyncio.to_thread(self._ledger.clear, number, key)
            except sqlite3.Error as error:
                reason = f"that its value is no longer outdated cannot be noted: {error}"
                raise TierUnavailableError(number, guard.tier.name, reason) from error
            self._outdated[number].discard(key)
        return removed

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
        return Entry(finite_json.encode(value), json=True)
    except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError) as error:
        raise MemoryValueError(f"the value is neither bytes nor JSON: {error}") from error

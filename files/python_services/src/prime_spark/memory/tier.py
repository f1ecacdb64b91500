"""What a tier is, and the guard that keeps one that is down from slowing down the others."""

from __future__ import annotations

import time
from collections.abc import Awaitable
from typing import Protocol, TypeVar

import msgspec

from prime_spark.memory.errors import QuotaError, TierUnavailableError

T = TypeVar("T")

# What a value counts beside its own bytes: what its tier needs to keep it, about.
ENTRY_BYTES = 1024


class Entry(msgspec.Struct, frozen=True):
    """A value as the tiers keep it: JSON text, or bytes as they were given."""

    data: bytes
    json: bool


class TierDownError(Exception):
    """Raised by a tier that could not do what was asked; the message is one line about why.

    `answers` is for a tier that is there, but refused this call: it is full, say.
    """

    def __init__(self, reason: str, *, answers: bool = False) -> None:
        super().__init__(reason)
        self.answers = answers


class Tier(Protocol):
    """A place that keeps entries by key. Every method raises TierDownError within its time."""

    name: str
    max_bytes: int

    async def get(self, key: str) -> Entry | None:
        """Return the entry, or None."""

    async def set(self, key: str, entry: Entry, ttl: int | None, owner: str) -> None:
        """Keep `entry` in the place of what was there; `ttl` in seconds where the tier has one.

        Raises QuotaError when the tier takes no more from `owner`, or from anybody.
        """

    async def delete(self, key: str) -> bool:
        """Remove the entry; return whether there was one."""

    async def check(self) -> None:
        """Raise what the other methods would, where there is no room for a value among them."""

    async def close(self) -> None:
        """Let go of connections."""


class Guard:
    """Asks a tier, and does not ask it again during a cooldown after it did not answer.

    In the cooldown calls fail at once with the reason of the last one. Then one call tries again
    while the others still fail. Nobody waits for the deadline of a tier that is known to be down.
    """

    def __init__(self, number: int, tier: Tier, cooldown_seconds: float) -> None:
        self.number = number
        self.tier = tier
        self._cooldown_seconds = cooldown_seconds
        self._reason: str | None = None
        self._cooldown_until = 0.0

    async def ask(self, asking: Awaitable[T]) -> T:
        """Await a call of the tier; raises TierUnavailableError, or the call's QuotaError."""
        if self._reason is not None:
            now = time.monotonic()
            if now < self._cooldown_until:
                _close(asking)
                raise self._unavailable(self._reason)
            self._cooldown_until = now + self._cooldown_seconds  # for the other calls
        try:
            answer = await asking
        except TierDownError as error:
            self._reason = None if error.answers else str(error)
            self._cooldown_until = time.monotonic() + self._cooldown_seconds
            raise self._unavailable(str(error)) from error
        except QuotaError:
            self._reason = None
            raise
        self._reason = None
        return answer

    def _unavailable(self, reason: str) -> TierUnavailableError:
        return TierUnavailableError(self.number, self.tier.name, reason)


def _close(asking: Awaitable[object]) -> None:
    """Dispose of a coroutine that is not going to run, without a warning."""
    close = getattr(asking, "close", None)
    if close is not None:
        close()

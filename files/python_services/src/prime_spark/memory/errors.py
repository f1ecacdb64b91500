"""What goes wrong with the memory."""

from __future__ import annotations


class TierUnavailableError(Exception):
    """A tier does not answer; `tier` is its number, `name` what it is, `reason` one line.

    Trying again later may help; the other tiers are not affected.
    """

    def __init__(self, tier: int, name: str, reason: str) -> None:
        super().__init__(f"memory tier {tier} ({name}) is unavailable: {reason}")
        self.tier = tier
        self.name = name
        self.reason = reason


class MemoryKeyError(ValueError):
    """The key is not allowed; the message says what is."""


class MemoryValueError(ValueError):
    """The value, tier or TTL is not allowed; the message says what is."""


class ValueTooLargeError(MemoryValueError):
    """The value is larger than its tier takes; sizes in bytes."""

    def __init__(self, tier: int, size: int, limit: int) -> None:
        super().__init__(f"a value of {size} bytes is too large for tier {tier}: at most {limit}")
        self.tier = tier
        self.size = size
        self.limit = limit

"""What goes wrong with the memory."""

from __future__ import annotations

from typing import Literal


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


class QuotaError(Exception):
    """A tier has no room for the value; bytes, and the message says what helps.

    `reason` is whose limit it is: its `owner`'s, that of `all` values of the tier, or the `room`
    of the server behind the tier, which others use as well.
    """

    def __init__(
        self,
        tier: int,
        name: str,
        reason: Literal["owner", "all", "room"],
        *,
        used: int = 0,
        limit: int = 0,
        size: int = 0,
    ) -> None:
        where = f"tier {tier} ({name})"
        if reason == "room":
            text = f"{where} has no room left but what the fleet itself needs; try another tier"
        else:
            whose = "your values" if reason == "owner" else "all values together"
            remedy = "delete some, or use another tier"
            if tier == 1:
                remedy = "delete some, give them a shorter ttl, or use another tier"
            text = (
                f"{whose} in {where} take {used} of {limit} bytes, and this one needs {size}:"
                f" {remedy}"
            )
        super().__init__(text)
        self.tier = tier
        self.reason = reason

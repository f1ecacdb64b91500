"""When an account is locked: what the API and the hook have in common."""

from __future__ import annotations

import hashlib
from typing import Annotated

import msgspec

from prime_spark.config import Config, Positive, PositiveSeconds


class LockoutConfig(Config, frozen=True):
    """From the `failures`th wrong password in a row on, an account is locked for an address.

    First for `first_seconds`, then twice as long after each further one, up to `max_seconds`.
    Forgotten after `forget_seconds`. From the `failures_anywhere`th on, whatever addresses they
    came from, the account is locked too for all addresses but those it was logged in from
    within `known_seconds`: guesses from many addresses are bounded, and do not shut its owner out.
    """

    failures: Annotated[int, msgspec.Meta(ge=1, le=100)] = 5
    failures_anywhere: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 50
    first_seconds: PositiveSeconds = 5.0
    max_seconds: PositiveSeconds = 900.0
    forget_seconds: Positive = 24 * 3600
    known_seconds: Positive = 30 * 24 * 3600


class LockedError(Exception):
    """The account is locked for `seconds` more, for whoever has this address."""

    def __init__(self, seconds: int) -> None:
        super().__init__(f"locked for {seconds} s")
        self.seconds = seconds


def names_of(username: str, address: str) -> tuple[str, str]:
    """Return names for the account and for the account at this address.

    Hashes: what was typed as a name may be a password.
    """
    account = hashlib.sha256(username.encode()).hexdigest()[:32]
    here = hashlib.sha256(f"{address} {username}".encode()).hexdigest()[:32]
    return account, here

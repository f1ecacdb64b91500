"""The time of the samples, and how the wall clock jumps under it."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime

# NTP slews what is smaller; a host without a battery-backed clock steps by hours after its boot.
_STEP_SECONDS = 1.0


class Clock:
    """The wall clock for what is recorded, the monotonic one for how long to wait.

    A step of the wall clock therefore neither stops the sampling nor makes it hurry: the next
    tick comes when it was to come, and the one after it is on a multiple of the interval again.
    """

    def __init__(
        self,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.wall = wall
        self.monotonic = monotonic
        self._ahead = wall() - monotonic()

    def now(self) -> datetime:
        """Return the wall clock's time, in UTC."""
        return datetime.fromtimestamp(self.wall(), UTC)

    def step(self) -> float:
        """Return by how many seconds the wall clock was set since the last call; 0.0 if it was not.

        Positive is forward.
        """
        ahead = self.wall() - self.monotonic()
        moved, self._ahead = ahead - self._ahead, ahead
        return moved if abs(moved) >= _STEP_SECONDS else 0.0

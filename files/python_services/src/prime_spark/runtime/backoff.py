"""Growing, jittered pauses between attempts."""

from __future__ import annotations

import random


class Backoff:
    """Pauses that double from `first` to `limit` seconds, each shortened by up to half.

    The jitter keeps the hosts of a fleet from reconnecting in step.
    """

    def __init__(self, first: float = 0.5, limit: float = 30.0) -> None:
        self._first = first
        self._limit = limit
        self._next = first

    def next(self) -> float:
        """Return the seconds to wait before the next attempt."""
        pause, self._next = self._next, min(self._next * 2, self._limit)
        return pause * random.uniform(0.5, 1.0)  # noqa: S311 (jitter, not a secret)

    def reset(self) -> None:
        """Start over after a success."""
        self._next = self._first

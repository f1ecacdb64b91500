"""A circuit breaker: a backend that keeps failing is not asked for a while."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal

State = Literal["closed", "open", "half-open"]


class Breaker:
    """Closed it lets every call through; open none; half-open one, whose outcome decides.

    Every call that `enter` let through is followed by exactly one of `succeeded`, `failed` and
    `forget`, with what `enter` returned. A call from before the breaker opened decides nothing any
    more, however late it ends.
    """

    def __init__(
        self, failures: int, open_seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._limit = failures
        self._open_seconds = open_seconds
        self._clock = clock
        self._failures = 0
        self._tripped = False
        self._open_until = float("-inf")
        self._trial = False
        self._round = 1  # changes when it opens and with each trial

    @property
    def state(self) -> State:
        """The state now."""
        if not self._tripped:
            return "closed"
        return "half-open" if self._clock() >= self._open_until else "open"

    def refusal(self) -> str:
        """Why a call would not be let through now; empty when it would."""
        if not self._tripped:
            return ""
        if (remaining := self._open_until - self._clock()) > 0:
            return f"circuit open for {remaining:.0f} s more after {self._failures} failures"
        return "being tried after failures" if self._trial else ""

    def enter(self) -> int | None:
        """Let a call through and return its round, or not."""
        if self.refusal():
            return None
        if self._tripped:
            self._trial = True
            self._round += 1
        return self._round

    def succeeded(self, of_round: int) -> None:
        """The call got an answer."""
        if of_round == self._round:
            self._failures, self._tripped, self._trial = 0, False, False

    def failed(self, of_round: int) -> None:
        """The call failed in a way that is the backend's fault."""
        if of_round != self._round:
            return
        self._failures += 1
        if self._trial or self._failures >= self._limit:
            self._tripped, self._open_until = True, self._clock() + self._open_seconds
            self._round += 1
        self._trial = False

    def forget(self, of_round: int) -> None:
        """The call ended without telling anything about the backend."""
        if of_round == self._round:
            self._trial = False

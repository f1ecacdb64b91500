"""How many requests a client address or a user may make."""

from __future__ import annotations

import time
from collections import deque
from typing import Literal

from prime_spark.api.errors import ApiError
from prime_spark.api.settings import LimitsConfig

Rate = Literal["login", "read", "write", "generate"]

_SECONDS = {"second": 1, "minute": 60, "hour": 3600}
_MAX_KEYS = 10_000


class _Window:
    """A limit, and when each one's last requests came, in seconds of the monotonic clock."""

    def __init__(self, text: str) -> None:
        number, _, self.unit = text.partition("/")
        self.limit = int(number)
        self.seconds = _SECONDS[self.unit]
        self._times: dict[str, deque[float]] = {}

    def wait(self, who: str) -> float:
        """Count a request and return 0, or return how long until the next may come."""
        now = time.monotonic()
        times = self._times.get(who)
        if times is None:
            if len(self._times) >= _MAX_KEYS:
                self._times.clear()  # so many addresses at once: better forgiving than growing
            times = self._times[who] = deque()
        while times and times[0] <= now - self.seconds:
            times.popleft()
        if len(times) >= self.limit:
            return times[0] + self.seconds - now
        times.append(now)
        return 0.0


class Rates:
    """Moving windows in this process's memory: limits hold whatever else is down."""

    def __init__(self, config: LimitsConfig) -> None:
        self._windows: dict[Rate, _Window] = {
            "login": _Window(config.login),
            "read": _Window(config.read),
            "write": _Window(config.write),
            "generate": _Window(config.generate),
        }

    def check(self, rate: Rate, who: str) -> None:
        """Count a request of `who`; raises ApiError (429) when it is one too many."""
        window = self._windows[rate]
        if seconds := window.wait(who):
            raise ApiError(
                429,
                "too_many_requests",
                f"more than {window.limit} requests per {window.unit}",
                retry_after=seconds,
            )

"""How many requests one client may make: moving windows in this process's memory."""

from __future__ import annotations

import time
from collections import deque
from typing import Annotated

import msgspec

Rate = Annotated[str, msgspec.Meta(pattern=r"^[1-9]\d{0,8}/(second|minute|hour)\Z")]

_SECONDS = {"second": 1, "minute": 60, "hour": 3600}
_MAX_KEYS = 10_000


class Window:
    """A limit, `30/minute` say, and when each one's last requests came (monotonic seconds)."""

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

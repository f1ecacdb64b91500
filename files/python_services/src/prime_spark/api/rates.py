"""How many requests a client address or a user may make."""

from __future__ import annotations

import time
from collections import deque
from typing import ClassVar, Literal

from limits import RateLimitItem, parse
from limits.storage import MovingWindowSupport, Storage
from limits.strategies import MovingWindowRateLimiter

from prime_spark.api.errors import ApiError
from prime_spark.api.settings import LimitsConfig

Rate = Literal["login", "read", "write", "generate"]


_MAX_KEYS = 10_000


class _Windows(Storage, MovingWindowSupport):  # type: ignore[misc]
    """When each key's last requests came. The library's own storage in memory starts a thread
    every ten milliseconds to clean up, which costs more than all the rest of a request.
    """

    STORAGE_SCHEME: ClassVar[list[str]] = ["prime-spark"]

    def __init__(self) -> None:
        super().__init__()
        self._times: dict[str, deque[float]] = {}

    @property
    def base_exceptions(self) -> type[Exception]:
        """What the storage may raise: nothing."""
        return ValueError

    def acquire_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        """Note `amount` requests, if the window has room for them."""
        now = time.time()
        times = self._window(key, now - expiry)
        if len(times) + amount > limit:
            return False
        times.extend([now] * amount)
        return True

    def get_moving_window(self, key: str, limit: int, expiry: int) -> tuple[float, int]:  # noqa: ARG002
        """Return when the window began, and how many requests are in it."""
        now = time.time()
        times = self._window(key, now - expiry)
        return (times[0] if times else now), len(times)

    def _window(self, key: str, since: float) -> deque[float]:
        times = self._times.get(key)
        if times is None:
            if len(self._times) >= _MAX_KEYS:
                self._times.clear()  # so many addresses at once: better forgiving than growing
            times = self._times[key] = deque()
        while times and times[0] <= since:
            times.popleft()
        return times

    def incr(self, key: str, expiry: float, amount: int = 1) -> int:
        """Not needed for moving windows."""
        raise NotImplementedError

    def get(self, key: str) -> int:
        """Not needed for moving windows."""
        raise NotImplementedError

    def get_expiry(self, key: str) -> float:
        """Not needed for moving windows."""
        raise NotImplementedError

    def check(self) -> bool:
        """Whether the storage works."""
        return True

    def reset(self) -> int:
        """Forget everything."""
        count = len(self._times)
        self._times.clear()
        return count

    def clear(self, key: str) -> None:
        """Forget a key."""
        self._times.pop(key, None)


class Rates:
    """Moving windows in this process's memory: limits hold whatever else is down."""

    def __init__(self, config: LimitsConfig) -> None:
        self._limiter = MovingWindowRateLimiter(_Windows())
        self._items: dict[Rate, RateLimitItem] = {
            "login": parse(config.login),
            "read": parse(config.read),
            "write": parse(config.write),
            "generate": parse(config.generate),
        }

    def check(self, rate: Rate, who: str) -> None:
        """Count a request of `who`; raises ApiError (429) when it is one too many."""
        item = self._items[rate]
        if self._limiter.hit(item, rate, who):
            return
        window = self._limiter.get_window_stats(item, rate, who)
        raise ApiError(
            429,
            "too_many_requests",
            f"more than {item.amount} requests per {item.multiples} {item.GRANULARITY.name}",
            retry_after=window.reset_time - time.time(),
        )

"""How many requests a client address or a user may make."""

from __future__ import annotations

from typing import Literal

from prime_spark.api.errors import ApiError
from prime_spark.api.settings import LimitsConfig
from prime_spark.runtime.window import Window

Rate = Literal["login", "read", "write", "generate"]


class Rates:
    """Moving windows in this process's memory: limits hold whatever else is down."""

    def __init__(self, config: LimitsConfig) -> None:
        self._windows: dict[Rate, Window] = {
            "login": Window(config.login),
            "read": Window(config.read),
            "write": Window(config.write),
            "generate": Window(config.generate),
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

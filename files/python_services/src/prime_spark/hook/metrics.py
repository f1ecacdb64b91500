"""Metrics of the hook."""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Gauge

from prime_spark.hook.queue import Ended

_PENDING = ("queued", "starting", "running")


class HookMetrics:
    """Counters of the hook, in `registry`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        prefix = "prime_spark_hook"
        self.deliveries = Counter(
            f"{prefix}_deliveries",
            "Deliveries by the status of the answer",
            ["source", "status"],
            registry=registry,
        )
        self.ended = Counter(
            f"{prefix}_runs_ended", "Runs by how they ended", ["state"], registry=registry
        )
        self._runs = Gauge(
            f"{prefix}_runs", "Runs that have not ended", ["state"], registry=registry
        )
        # A series that begins with its first event has no rate then.
        for state in get_args(Ended):
            self.ended.labels(state)
        self.count_states({})

    def count_states(self, counts: Mapping[str, int]) -> None:
        """Show how many runs are in which state."""
        for state in _PENDING:
            self._runs.labels(state).set(counts.get(state, 0))

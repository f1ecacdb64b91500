"""Metrics of the dispatcher."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_BUCKETS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)


class DispatcherMetrics:
    """Counters of one dispatcher, in `registry`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        prefix = "prime_spark_dispatcher"
        self.ended = Counter(
            f"{prefix}_tasks", "Tasks that have ended", ["type", "state"], registry=registry
        )
        self.retries = Counter(
            f"{prefix}_retries", "Attempts that failed and are repeated", ["agent"],
            registry=registry,
        )  # fmt: skip
        self.attempt_seconds = Histogram(
            f"{prefix}_attempt_seconds",
            "From a task given to an agent to its end there",
            ["type"],
            buckets=_BUCKETS,
            registry=registry,
        )
        self.leading = Gauge(f"{prefix}_leading", "1 while holding the lease", registry=registry)
        self.queued = Gauge(
            f"{prefix}_queued", "Tasks that wait, 32 at most", ["type"], registry=registry
        )
        self.running = Gauge(f"{prefix}_running", "Tasks given to agents", registry=registry)
        self.agent_alive = Gauge(
            f"{prefix}_agent_alive", "1 while the agent sends heartbeats", ["agent"],
            registry=registry,
        )  # fmt: skip

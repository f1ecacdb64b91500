"""Metrics of the agent."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_BUCKETS = (0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class AgentMetrics:
    """Counters of one agent, in `registry`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        prefix = "prime_spark_agent"
        self.tasks = Counter(
            f"{prefix}_tasks",
            "Tasks by how they ended; repeated: answered from what was kept",
            ["type", "status"],
            registry=registry,
        )
        self.seconds = Histogram(
            f"{prefix}_task_seconds",
            "From a task's arrival to its end",
            ["type"],
            buckets=_BUCKETS,
            registry=registry,
        )
        self.running = Gauge(f"{prefix}_tasks_running", "Tasks under way", registry=registry)
        self.refused = Counter(
            f"{prefix}_requests_refused", "Requests not taken", ["reason"], registry=registry
        )

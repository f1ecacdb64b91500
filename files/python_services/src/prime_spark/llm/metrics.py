"""Metrics of the language models."""

from __future__ import annotations

from functools import cache

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_BUCKETS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class LLMMetrics:
    """Counters of one router, in `registry`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        prefix = "prime_spark_llm"
        requests = Counter(
            f"{prefix}_requests", "Requests by outcome", ["source", "outcome"], registry=registry
        )
        self.attempts = Counter(
            f"{prefix}_attempts",
            "Attempts to have a backend answer",
            ["backend", "outcome"],
            registry=registry,
        )
        seconds = Histogram(
            f"{prefix}_request_seconds",
            "From the request to the end of its answer",
            ["source"],
            buckets=_BUCKETS,
            registry=registry,
        )
        self.tokens = Counter(
            f"{prefix}_tokens",
            "Tokens as the backends count them",
            ["backend", "direction"],
            registry=registry,
        )
        cached = Counter(f"{prefix}_cache", "Look-ups and stores", ["outcome"], registry=registry)
        # Given the labels' values; looking them up each time is dearer than counting.
        self.requests = cache(requests.labels)
        self.seconds = cache(seconds.labels)
        self.cache = cache(cached.labels)
        self.circuit_open = Gauge(
            f"{prefix}_circuit_open",
            "1 while the circuit of a backend is open after failures",
            ["backend"],
            registry=registry,
        )

"""Metrics of the telemetry collector."""

from __future__ import annotations

from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from prime_spark.telemetry.buffer import DiskBuffer


class TelemetryMetrics:
    """Counters of one collector, in `registry`."""

    def __init__(self, registry: CollectorRegistry, buffer: DiskBuffer) -> None:
        prefix = "prime_spark_telemetry"
        self.samples = Counter(f"{prefix}_samples", "Samples taken", registry=registry)
        self.sent = Counter(f"{prefix}_sent", "Samples acknowledged by Kafka", registry=registry)
        self.send_failures = Counter(
            f"{prefix}_send_failures", "Failed attempts to reach Kafka", registry=registry
        )
        self.clock_steps = Counter(
            f"{prefix}_clock_steps", "Times the clock was found set", registry=registry
        )
        self.redis_failures = Counter(
            f"{prefix}_redis_failures", "Failed updates of the hash in Redis", registry=registry
        )
        self.last_sample = Gauge(
            f"{prefix}_last_sample_timestamp_seconds",
            "When the newest sample was taken",
            registry=registry,
        )
        self.sample_seconds = Histogram(
            f"{prefix}_sample_seconds",
            "Time to take and buffer a sample",
            registry=registry,
            buckets=(0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5),
        )
        for name, help_text, attribute in (
            ("buffer_records", "Samples waiting for Kafka", "records"),
            ("buffer_bytes", "Size of the waiting samples on disk", "bytes"),
            ("buffer_memory_records", "Samples the disk does not take", "in_memory"),
            ("dropped_samples", "Samples lost since the start: no room, or unreadable", "dropped"),
            ("damaged_buffers", "Buffers set aside since the start", "damaged"),
        ):
            gauge = Gauge(f"{prefix}_{name}", help_text, registry=registry)
            gauge.set_function(partial(_statistic, buffer, attribute))


def _statistic(buffer: DiskBuffer, name: str) -> float:
    return float(getattr(buffer.stats(), name))

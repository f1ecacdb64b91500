"""Metrics of ingest."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from prime_spark.kafka.consumer import Partition
from prime_spark.timeseries.writer import Written


class IngestMetrics:
    """Counters of one ingest process, in `registry`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        prefix = "prime_spark_ingest"
        self.messages = Counter(
            f"{prefix}_messages", "Messages read from Kafka", ["topic"], registry=registry
        )
        self.rows = Counter(f"{prefix}_rows", "Rows inserted", ["table"], registry=registry)
        self.duplicates = Counter(
            f"{prefix}_duplicates", "Rows that were stored already", ["table"], registry=registry
        )
        self.dead_letters = Counter(
            f"{prefix}_dead_letters",
            "Messages moved to the dead-letter topic",
            ["topic"],
            registry=registry,
        )
        self.retries = Counter(
            f"{prefix}_retries",
            "Attempts that failed and were repeated",
            ["component"],
            registry=registry,
        )
        self.batch_seconds = Histogram(
            f"{prefix}_batch_seconds",
            "From the start of a batch's transaction to the rows stored, retries included",
            registry=registry,
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60, 600),
        )
        self.last_commit = Gauge(
            f"{prefix}_last_commit_timestamp_seconds",
            "When offsets were last committed",
            registry=registry,
        )
        self._lag = Gauge(
            f"{prefix}_lag", "Messages not yet read", ["topic", "partition"], registry=registry
        )

    def count(self, written: Written) -> None:
        """Count the outcome of one transaction."""
        for table, rows in written.rows.items():
            self.rows.labels(table).inc(rows)
        for table, duplicates in written.duplicates.items():
            self.duplicates.labels(table).inc(duplicates)

    def set_lag(self, lags: Mapping[Partition, int]) -> None:
        """Replace the lag of all partitions."""
        self._lag.clear()
        for partition, lag in lags.items():
            self._lag.labels(partition.topic, str(partition.number)).set(lag)

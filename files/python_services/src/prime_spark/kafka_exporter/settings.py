"""Configuration of the Kafka exporter."""

from __future__ import annotations

from prime_spark.config import Config, HttpConfig, KafkaConfig, LogLevel, PositiveSeconds


class KafkaExporterConfig(Config, frozen=True):
    """Configuration of prime-spark-kafka-exporter.

    The cluster is asked every `interval_seconds`; the user needs DESCRIBE on the cluster, on all
    topics and on all groups.
    """

    kafka: KafkaConfig
    http: HttpConfig
    interval_seconds: PositiveSeconds = 15.0
    timeout_seconds: PositiveSeconds = 10.0
    log_level: LogLevel = "info"

"""Configuration of the telemetry collector."""

from __future__ import annotations

from typing import Annotated

import msgspec

from prime_spark.config import (
    Config,
    DeviceId,
    HttpConfig,
    KafkaConfig,
    LogLevel,
    NonEmpty,
    PositiveSeconds,
    RedisConfig,
    TopicName,
)
from prime_spark.events import Telemetry


class BufferConfig(Config, frozen=True):
    """Where samples wait for Kafka: at most `max_bytes` on disk (its log aside), oldest first out.

    Waiting samples are flushed to the device every `fsync_seconds`; a power cut loses at most
    those of that time, a crash of the process loses none.
    """

    path: NonEmpty
    max_bytes: Annotated[int, msgspec.Meta(ge=1024 * 1024)] = 64 * 1024 * 1024
    fsync_seconds: PositiveSeconds = 60.0


class TelemetryConfig(Config, frozen=True):
    """Configuration of prime-spark-telemetry."""

    device_id: DeviceId
    interval_seconds: Annotated[float, msgspec.Meta(ge=0.1, le=3600)]
    kafka: KafkaConfig
    buffer: BufferConfig
    http: HttpConfig
    redis: RedisConfig | None = None
    disk_path: NonEmpty = "/"
    topic: TopicName = Telemetry.topic
    log_level: LogLevel = "info"

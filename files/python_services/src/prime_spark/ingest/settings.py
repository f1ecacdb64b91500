"""Configuration of ingest."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

import msgspec

from prime_spark.config import (
    Config,
    DatabaseConfig,
    HttpConfig,
    KafkaConfig,
    LogLevel,
    NonEmpty,
    TopicName,
)
from prime_spark.events import MAX_AGE, ApiEvent, Event, Inference, Telemetry


class TopicsConfig(Config, frozen=True):
    """The topics to read, by what is in them."""

    telemetry: TopicName = Telemetry.topic
    inference: TopicName = Inference.topic
    api_events: TopicName = ApiEvent.topic

    def event_types(self) -> dict[str, type[Event]]:
        """Return the type of the events in each topic."""
        return {self.telemetry: Telemetry, self.inference: Inference, self.api_events: ApiEvent}

    def __post_init__(self) -> None:
        if len(self.event_types()) != len(self.__struct_fields__):
            raise ValueError("the topics must have different names")


class BatchConfig(Config, frozen=True):
    """How much to store in one transaction, and how long to wait for it to come in.

    `max_bytes` are those of the messages; what one fetch brings is never split.
    """

    max_records: Annotated[int, msgspec.Meta(ge=1, le=50_000)] = 2000
    max_bytes: Annotated[int, msgspec.Meta(ge=64 * 1024, le=256 * 1024 * 1024)] = 8 * 1024 * 1024
    max_wait_ms: Annotated[int, msgspec.Meta(ge=10, le=5_000)] = 500


class IngestConfig(Config, frozen=True):
    """Configuration of prime-spark-ingest.

    `group_instance_id` (unique per process, stable over restarts) lets a restarted ingest take
    its partitions back at once instead of waiting for its old membership to expire. Another
    member takes over the partitions of one that died after `session_timeout_ms`.

    Events older than `max_age_days` are dead-lettered.
    """

    kafka: KafkaConfig
    group_id: NonEmpty
    database: DatabaseConfig
    http: HttpConfig
    group_instance_id: NonEmpty | None = None
    topics: TopicsConfig = TopicsConfig()
    dead_letter_topic: TopicName = "prime-spark.dlq"
    batch: BatchConfig = BatchConfig()
    max_age_days: Annotated[int, msgspec.Meta(ge=1, le=36500)] = MAX_AGE.days
    session_timeout_ms: Annotated[int, msgspec.Meta(ge=6_000, le=300_000)] = 15_000
    log_level: LogLevel = "info"

    def __post_init__(self) -> None:
        if self.dead_letter_topic in self.topics.event_types():
            raise ValueError("dead_letter_topic must not be one of the topics that are read")

    @property
    def max_age(self) -> timedelta:
        """How long ago an event may have happened."""
        return timedelta(days=self.max_age_days)

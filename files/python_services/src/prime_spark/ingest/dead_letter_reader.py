"""Reads the dead-letter topic back: what lies there, and what of it can be stored by now."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.errors import UnknownTopicOrPartitionError

from prime_spark.config import KafkaConfig
from prime_spark.kafka.clients import connection_options
from prime_spark.runtime.service import close_within, within

_START_SECONDS = 15.0
_FETCH_SECONDS = 15.0
_STOP_SECONDS = 3.0
_AT_ONCE = 500
# A partition or an offset; Python's int takes digits of any script.
NUMBER = re.compile(r"[0-9]{1,19}")


@dataclass(frozen=True)
class Letter:
    """A dead letter as it lies in its topic.

    `offset` is its place there; `topic`, `partition` and `source_offset` say where the message
    came from (empty, -1 and -1 where the headers that say so are missing).
    """

    number: int
    offset: int
    buried: datetime
    topic: str
    partition: int
    source_offset: int
    reason: str
    truncated_from: int | None
    key: bytes | None
    value: bytes | None

    @property
    def id(self) -> str:
        """What `show` takes: partition and offset in the dead-letter topic."""
        return f"{self.number}:{self.offset}"

    @property
    def source(self) -> tuple[str, int, int]:
        """Where the message came from. After a crash a message can be here twice."""
        return self.topic, self.partition, self.source_offset

    def summary(self) -> dict[str, Any]:
        """Return everything but the message."""
        return {
            "id": self.id,
            "buried": self.buried.isoformat(timespec="milliseconds"),
            "topic": self.topic,
            "partition": self.partition,
            "offset": self.source_offset,
            "bytes": len(self.value or b""),
            "truncated_from": self.truncated_from,
            "reason": self.reason,
        }


async def read_letters(config: KafkaConfig, topic: str) -> AsyncGenerator[list[Letter], None]:
    """Yield the letters that are in `topic` now, in order, some at a time; none is consumed.

    Raises one of KAFKA_ERRORS, UnknownTopicOrPartitionError where there is no such topic.
    """
    consumer: Any = AIOKafkaConsumer(
        **connection_options(config, "prime-spark-dlq"),
        enable_auto_commit=False,
        isolation_level="read_committed",
        auto_offset_reset="earliest",
    )
    try:
        await within(_START_SECONDS, consumer.start())
        numbers = await within(_START_SECONDS, _partitions(consumer, topic))
        assigned = [TopicPartition(topic, number) for number in sorted(numbers)]
        consumer.assign(assigned)
        ends = await within(_START_SECONDS, consumer.end_offsets(assigned))
        for partition in assigned:
            while await within(_START_SECONDS, consumer.position(partition)) < ends[partition]:
                fetching = consumer.getmany(
                    partition, timeout_ms=int(_FETCH_SECONDS * 1000), max_records=_AT_ONCE
                )
                found = await within(2 * _FETCH_SECONDS, fetching)
                if not (records := found.get(partition)):
                    raise TimeoutError(f"no answer within {_FETCH_SECONDS:g} s")
                yield [letter_of(record) for record in records if record.offset < ends[partition]]
    finally:
        await close_within(_STOP_SECONDS, consumer.stop())


async def _partitions(consumer: Any, topic: str) -> set[int]:
    """Return the partitions of `topic`, which the client knows only once it was asked for them."""
    await consumer._client.add_topic(topic)  # noqa: SLF001 (no public way without subscribing)
    for _ in range(20):
        if numbers := consumer.partitions_for_topic(topic):
            return set(numbers)
        await consumer._client.force_metadata_update()  # noqa: SLF001
        await asyncio.sleep(0.1)
    raise UnknownTopicOrPartitionError(topic)


def letter_of(record: ConsumerRecord) -> Letter:
    """Return the letter in `record`."""
    headers = {name: value.decode(errors="replace") for name, value in record.headers}
    return Letter(
        number=record.partition,
        offset=record.offset,
        buried=datetime.fromtimestamp(record.timestamp / 1000, UTC),
        topic=headers.get("topic", ""),
        partition=_number(headers.get("partition")),
        source_offset=_number(headers.get("offset")),
        reason=headers.get("reason", ""),
        truncated_from=_number(headers["truncated-from"]) if "truncated-from" in headers else None,
        key=record.key,
        value=record.value,
    )


def _number(text: str | None) -> int:
    return int(text) if text is not None and NUMBER.fullmatch(text) else -1

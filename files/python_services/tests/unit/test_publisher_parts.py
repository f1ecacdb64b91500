"""What the publisher makes of a round that Kafka took in part."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest
from aiokafka.errors import KafkaTimeoutError, MessageSizeTooLargeError
from prometheus_client import CollectorRegistry

from prime_spark.config import KafkaConfig
from prime_spark.events import Telemetry
from prime_spark.kafka.producer import Record
from prime_spark.kafka.publisher import EventPublisher


class PartialProducer:
    """Takes what is left of the records after the given fates, one for each of the first."""

    def __init__(self, fates: list[BaseException | None]) -> None:
        self.fates = fates
        self.taken: list[bytes] = []

    async def send_all(self, records: Sequence[Record]) -> list[BaseException | None]:
        results = [self.fates.pop(0) if self.fates else None for _ in records]
        taken = zip(records, results, strict=True)
        self.taken += [record.key for record, error in taken if error is None]
        return results


@pytest.fixture
def publisher(tmp_path: Path) -> EventPublisher:
    config = KafkaConfig(bootstrap_servers=["127.0.0.1:9"], username="x", credential="x")
    return EventPublisher(config, "test", registry=CollectorRegistry())


def test_partly_failed_round_keeps_order_and_count(publisher: EventPublisher) -> None:
    lost = KafkaTimeoutError()
    producer = PartialProducer([None, lost, MessageSizeTooLargeError(), lost])
    publisher._producer = producer  # type: ignore[assignment]
    for name in "abcdef":
        time = datetime(2026, 3, 1, tzinfo=UTC)
        assert publisher.stream_telemetry(Telemetry(time=time, device_id=name, metrics={"m": 1.0}))
    size = publisher._bytes // 6

    async def main() -> None:
        with pytest.raises(KafkaTimeoutError):
            await publisher._send_round()
        assert [record.key for record in publisher._queue] == [b"b", b"d"]
        assert publisher._bytes == 2 * size
        await publisher._send_round()

    asyncio.run(main())
    assert producer.taken == [b"a", b"e", b"f", b"b", b"d"]
    health = publisher.health()
    assert (health.queued, health.dropped, publisher._bytes) == (0, 1, 0)

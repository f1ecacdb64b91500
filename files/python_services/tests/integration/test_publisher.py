"""The event publisher with a real Kafka that comes and goes."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from prometheus_client import CollectorRegistry
from tests.integration.servers import KafkaServer

from prime_spark.config import KafkaConfig
from prime_spark.events import ApiEvent, Inference, Telemetry, decode, new_event_id
from prime_spark.kafka.publisher import EventPublisher, PublisherConfig
from support import kafka_admin, kafka_config, read_all

_numbers = itertools.count(1)
NOW = datetime(2026, 3, 1, tzinfo=UTC)


def api_event(number: int) -> ApiEvent:
    return ApiEvent(
        time=NOW + timedelta(seconds=number),
        event_id=new_event_id(),
        method="GET",
        endpoint="/health",
        status=200,
        duration_ms=float(number),
    )


@dataclass
class Broker:
    """A Kafka user who may write two of three topics."""

    server: KafkaServer
    config: KafkaConfig
    prefix: str

    def durations(self) -> list[float]:
        """Return the duration of the API events in Kafka, in their order."""
        records = read_all(self.server, f"{self.prefix}.api", 1)
        return [decode(record.value, ApiEvent).duration_ms for record in records]

    @asynccontextmanager
    async def publisher(self, **settings: Any) -> AsyncIterator[EventPublisher]:
        registry = CollectorRegistry()
        topics = {
            "api_topic": f"{self.prefix}.api",
            "inference_topic": f"{self.prefix}.inference",
            "telemetry_topic": f"{self.prefix}.telemetry",
        }
        config = PublisherConfig(**{**topics, **settings})
        publisher = EventPublisher(self.config, "test", config, registry)
        publisher.registry = registry  # type: ignore[attr-defined]
        await publisher.start()
        try:
            yield publisher
        finally:
            await publisher.stop()


def counted(publisher: EventPublisher, name: str, **labels: str) -> float:
    registry: CollectorRegistry = publisher.registry  # type: ignore[attr-defined]
    return sum(
        sample.value
        for metric in registry.collect()
        for sample in metric.samples
        if sample.name == f"prime_spark_publisher_{name}"
        and labels.items() <= sample.labels.items()
    )


@pytest.fixture
def broker(kafka: KafkaServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Broker:
    prefix = f"p{next(_numbers)}"
    acl = {"principal": "User:api", "resource_type": "TOPIC", "operations": ["WRITE", "DESCRIBE"]}
    command = kafka_admin(
        kafka,
        tmp_path,
        topics={
            f"{prefix}.{name}": {"partitions": 1} for name in ("api", "inference", "telemetry")
        },
        users={"api": "kafka secret"},
        acls=[{**acl, "name": f"{prefix}.{name}"} for name in ("api", "inference", "absent")],
    )
    command.answer("apply")
    (tmp_path / "credentials" / "kafka_password").write_text("kafka secret")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path / "credentials"))
    config = msgspec.convert(kafka_config(kafka, "api"), KafkaConfig)
    return Broker(kafka, config, prefix)


async def until(probe: Callable[[], object], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not probe():
        assert time.monotonic() < deadline, f"not within {seconds:g} s"
        await asyncio.sleep(0.02)


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(main)


def test_events_arrive_with_their_keys(broker: Broker) -> None:
    async def main() -> None:
        async with broker.publisher() as publisher:
            assert publisher.stream_api_event(api_event(1))
            inference = Inference(
                time=NOW, event_id=new_event_id(), model_name="m:1b", source="edge", latency_ms=5
            )
            assert publisher.stream_llm_inference(inference)
            await until(lambda: counted(publisher, "sent_total") == 2)
            assert publisher.health() == msgspec.structs.replace(
                publisher.health(), connected=True, queued=0, dropped=0, detail=""
            )

    run(main())
    (record,) = read_all(broker.server, f"{broker.prefix}.inference", 1)
    assert record.key == b"m:1b"
    (record,) = read_all(broker.server, f"{broker.prefix}.api", 1)
    assert (record.key, decode(record.value, ApiEvent).duration_ms) == (b"/health", 1.0)


def test_kafka_away_blocks_nobody_and_events_flow_again(broker: Broker) -> None:
    async def main() -> None:
        async with broker.publisher(max_events=100) as publisher:
            started = time.monotonic()
            accepted = [publisher.stream_api_event(api_event(number)) for number in range(150)]
            assert time.monotonic() - started < 5
            assert accepted == [True] * 100 + [False] * 50
            await until(lambda: counted(publisher, "failures_total") >= 2)
            health = publisher.health()
            assert (health.connected, health.queued, health.dropped) == (False, 100, 50)
            assert health.detail
            assert counted(publisher, "dropped_total", reason="full") == 50
            assert counted(publisher, "queued") == 100
            await asyncio.to_thread(broker.server.start)
            await until(lambda: counted(publisher, "sent_total") == 100)
            assert publisher.health().connected
            assert publisher.stream_api_event(api_event(1000))
            await until(lambda: counted(publisher, "sent_total") == 101)

    broker.server.stop()
    try:
        run(main())
    finally:
        if not broker.server.running:
            broker.server.start()
    # What was dropped is the newest; nothing is twice, the order is kept.
    assert broker.durations() == [*map(float, range(100)), 1000.0]


def test_bytes_are_bounded_too(broker: Broker) -> None:
    broker.config = msgspec.structs.replace(broker.config, bootstrap_servers=["127.0.0.1:9"])

    async def main() -> None:
        async with broker.publisher(max_bytes=64 * 1024) as publisher:
            event = msgspec.structs.replace(api_event(1), metadata={"text": "x" * 30_000})
            assert [publisher.stream_api_event(event) for _ in range(3)] == [True, True, False]

    run(main())


def test_broker_killed_and_back_loses_nothing(broker: Broker) -> None:
    """Takes its time: the client gives a batch up after 10 to 15 s without an answer."""

    async def main() -> None:
        async with broker.publisher(linger_seconds=0.0) as publisher:
            for number in range(20):
                assert publisher.stream_api_event(api_event(number))
            await until(lambda: counted(publisher, "sent_total") >= 1)
            await asyncio.to_thread(broker.server.kill)
            for number in range(20, 60):
                assert publisher.stream_api_event(api_event(number))
            await until(lambda: not publisher.health().connected)
            await asyncio.to_thread(broker.server.start)
            await until(lambda: counted(publisher, "sent_total") == 60, 60)
            assert publisher.health().dropped == 0

    run(main())
    # One batch may have been stored just before the broker died: it is there twice then.
    assert list(dict.fromkeys(broker.durations())) == [*map(float, range(60))]


def test_silent_broker_is_noticed_without_any_event(broker: Broker) -> None:
    async def main() -> None:
        async with broker.publisher() as publisher:
            await until(lambda: publisher.health().connected)
            os.kill(broker.server.pid, signal.SIGSTOP)  # takes connections, answers nothing
            try:
                await until(lambda: not publisher.health().connected)
            finally:
                os.kill(broker.server.pid, signal.SIGCONT)
            await until(lambda: publisher.health().connected)

    run(main())


def test_stop_ends_in_time_and_counts_what_is_left(broker: Broker) -> None:
    async def main() -> None:
        async with broker.publisher(flush_seconds=1.0) as publisher:
            await until(lambda: publisher.health().connected)
            os.kill(broker.server.pid, signal.SIGSTOP)
            try:
                assert publisher.stream_api_event(api_event(1))
                started = time.monotonic()
                await publisher.stop()
                assert time.monotonic() - started < 30
            finally:
                os.kill(broker.server.pid, signal.SIGCONT)
            assert counted(publisher, "dropped_total", reason="stopped") == 1
            assert not publisher.stream_api_event(api_event(2))

    run(main())


def test_stop_sends_what_waits(broker: Broker) -> None:
    async def main() -> None:
        async with broker.publisher(linger_seconds=5.0) as publisher:
            await until(lambda: publisher.health().connected)
            assert publisher.stream_api_event(api_event(7))

    run(main())
    assert broker.durations() == [7.0]


@pytest.mark.parametrize("topic", ["telemetry", "absent"], ids=["no right", "no topic"])
def test_refused_topic_holds_up_no_other(broker: Broker, topic: str) -> None:
    async def main() -> None:
        sample = Telemetry(time=NOW, device_id="host-1", metrics={"cpu_percent": 1.0})
        name = f"{broker.prefix}.{topic}"
        async with broker.publisher(telemetry_topic=name) as publisher:
            for number in range(3):
                assert publisher.stream_telemetry(sample)
                assert publisher.stream_api_event(api_event(number))
            await until(lambda: counted(publisher, "sent_total") == 3)
            assert counted(publisher, "dropped_total", reason="refused") == 3
            assert publisher.health().connected
            assert publisher.health().detail == f"topics refused: {name}"
            assert not publisher.stream_telemetry(sample), "not asked again at once"

    run(main())


def test_invalid_event_is_dropped(broker: Broker) -> None:
    async def main() -> None:
        async with broker.publisher() as publisher:
            bad = Inference(
                time=NOW, event_id=new_event_id(), model_name="no model", source="x", latency_ms=1.0
            )
            assert not publisher.stream_llm_inference(bad)
            assert counted(publisher, "dropped_total", reason="invalid") == 1

    run(main())

"""What the API keeps of its requests is gathered for a moment and then written, all of it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from prometheus_client import CollectorRegistry

from prime_spark.api.exchange import Exchange
from prime_spark.api.journal import _GATHER_MOST, Journal
from prime_spark.config import KafkaConfig
from prime_spark.events import Inference, new_event_id, new_event_id_text
from prime_spark.runtime.asgi import HttpMetrics
from prime_spark.streaming.publisher import EventPublisher


class World:
    """A journal whose publisher keeps what it is given: it is not started."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        kafka = KafkaConfig(bootstrap_servers=["127.0.0.1:1"], username="api", credential="kafka")
        self.publisher = EventPublisher(kafka, "test", registry=self.registry)
        self.journal = Journal(HttpMetrics(self.registry), self.publisher)

    def requests(self) -> float:
        labels = {"method": "GET", "endpoint": "/x", "status": "200"}
        return self.registry.get_sample_value("fastapi_requests_total", labels) or 0.0

    def queued(self) -> int:
        return self.publisher.health().queued


@pytest.fixture
def world() -> World:
    return World()


def answered(path: str = "/x") -> Exchange:
    exchange = Exchange(new_event_id_text(), "127.0.0.1", "GET", path)
    exchange.status, exchange.endpoint, exchange.answered = 200, path, time.time()
    return exchange


def inference() -> Inference:
    return Inference(
        time=datetime.now(UTC), event_id=new_event_id(), model_name="m", source="edge", latency_ms=1
    )


async def until(reached: Callable[[], bool], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.002)


def test_it_is_written_by_itself_after_a_moment(
    world: World, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    async def go() -> None:
        for _ in range(2):  # the second time the timer is set anew
            before = world.queued()
            world.journal.add(answered())
            world.journal.infer(inference())
            world.journal.note({"audit": "login"})
            assert world.queued() == before
            await until(lambda before=before: world.queued() == before + 2)

    asyncio.run(go())
    assert world.requests() == 2
    lines = [json.loads(line) for line in capfdbinary.readouterr().out.splitlines()]
    assert [line["audit"] for line in lines] == ["login", "login"]
    assert all(line["event"] == "audit" and line["timestamp"].endswith("Z") for line in lines)


def test_many_do_not_wait_and_grow(world: World) -> None:
    async def go() -> None:
        for _ in range(_GATHER_MOST):
            world.journal.add(answered())

    asyncio.run(go())
    assert world.queued() == world.requests() == _GATHER_MOST


def test_it_is_written_at_once_when_asked_for_and_only_once(world: World) -> None:
    async def go() -> None:
        world.journal.add(answered())
        world.journal.write()
        assert world.journal._timer is None
        world.journal.write()

    asyncio.run(go())
    assert world.queued() == world.requests() == 1


def test_the_monitorings_own_requests_are_no_events(world: World) -> None:
    async def go() -> None:
        for path in ("/health", "/metrics"):
            world.journal.add(answered(path))
        world.journal.write()

    asyncio.run(go())
    assert world.queued() == 0

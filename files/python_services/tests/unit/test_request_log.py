"""What the API keeps of each of its requests."""

from __future__ import annotations

import time

import pytest
from prometheus_client import CollectorRegistry

from prime_spark.api.request_context import RequestContext
from prime_spark.api.request_log import RequestLog
from prime_spark.config import KafkaConfig
from prime_spark.events import new_event_id
from prime_spark.kafka.publisher import EventPublisher
from prime_spark.runtime.asgi import HttpMetrics


class World:
    """A request log whose publisher keeps what it is given: it is not started."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        kafka = KafkaConfig(bootstrap_servers=["127.0.0.1:1"], username="api", credential="kafka")
        self.publisher = EventPublisher(kafka, "test", registry=self.registry)
        self.request_log = RequestLog(HttpMetrics(self.registry), self.publisher)

    def requests(self) -> float:
        labels = {"method": "GET", "endpoint": "/x", "status": "200"}
        return self.registry.get_sample_value("fastapi_requests_total", labels) or 0.0

    def queued(self) -> int:
        return self.publisher.health().queued


@pytest.fixture
def world() -> World:
    return World()


def answered(path: str = "/x") -> RequestContext:
    context = RequestContext(new_event_id(), "127.0.0.1", "GET", path)
    context.status, context.endpoint, context.answered = 200, path, time.time()
    return context


def test_a_request_is_counted_and_published(world: World) -> None:
    world.request_log.add(answered())
    assert world.queued() == world.requests() == 1


def test_a_line_for_an_auditor_is_written_at_once(
    world: World, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    world.request_log.note({"audit": "login"})
    assert b"login" in capfdbinary.readouterr().out


def test_the_monitorings_own_requests_are_no_events(world: World) -> None:
    for path in ("/health", "/metrics"):
        world.request_log.add(answered(path))
    assert world.queued() == 0

"""Publishes the services' events to Kafka without ever making anyone wait for Kafka.

A `stream_...` call encodes the event and puts it into a bounded queue; one task sends what is
there. While Kafka is away the queue fills, then events are dropped and counted. What was not
acknowledged is sent again, in its order; the events' ids make a repetition harmless.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections import Counter as Counts
from collections import deque
from functools import cache
from typing import Annotated

import msgspec
import structlog
from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge

from prime_spark.config import Config, KafkaConfig, PositiveSeconds, TopicName
from prime_spark.events import ApiEvent, Event, EventError, Inference, Telemetry, encode
from prime_spark.kafka.clients import describe
from prime_spark.kafka.producer import (
    KAFKA_ERRORS,
    REFUSALS,
    TOPIC_REFUSALS,
    Producer,
    Record,
)
from prime_spark.runtime.backoff import Backoff
from prime_spark.runtime.service import within

_log = structlog.get_logger(__name__)

_ROUND_RECORDS = 500
_IDLE_SECONDS = 5.0
_REFUSED_SECONDS = 30.0
_STOP_SECONDS = 1.0


class PublisherConfig(Config, frozen=True):
    """How much may wait for Kafka, and where the events go.

    `linger_seconds` gathers events before they are sent, `flush_seconds` is what `stop` gives
    Kafka to take the rest.
    """

    max_events: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 10_000
    max_bytes: Annotated[int, msgspec.Meta(ge=64 * 1024)] = 8 * 1024 * 1024
    linger_seconds: Annotated[float, msgspec.Meta(ge=0, le=5)] = 0.1
    flush_seconds: PositiveSeconds = 5.0
    api_topic: TopicName = ApiEvent.topic
    inference_topic: TopicName = Inference.topic
    telemetry_topic: TopicName = Telemetry.topic


class PublisherHealth(msgspec.Struct, frozen=True):
    """Whether Kafka takes events, how many wait for it, how many were lost since the start."""

    connected: bool
    queued: int
    dropped: int
    detail: str


class PublisherMetrics:
    """Counters of one publisher, in `registry`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        prefix = "prime_spark_publisher"
        events = Counter(f"{prefix}_events", "Events taken", ["topic"], registry=registry)
        # Given a topic; looking the label up each time is dearer than counting.
        self.events = cache(events.labels)
        self.sent = Counter(
            f"{prefix}_sent", "Events acknowledged by Kafka", ["topic"], registry=registry
        )
        self.dropped = Counter(
            f"{prefix}_dropped",
            "Events lost: full queue, invalid, refused by Kafka, not sent before the end",
            ["topic", "reason"],
            registry=registry,
        )
        self.failures = Counter(
            f"{prefix}_failures", "Failed attempts to reach Kafka", registry=registry
        )
        self.queued = Gauge(f"{prefix}_queued", "Events waiting for Kafka", registry=registry)
        self.connected = Gauge(
            f"{prefix}_connected", "1 while Kafka takes events", registry=registry
        )


class EventPublisher:
    """A bounded queue and the one task that empties it into Kafka.

    The `stream_...` methods belong to the event loop that `start` was called on.
    """

    def __init__(
        self,
        kafka: KafkaConfig,
        client_id: str,
        settings: PublisherConfig = PublisherConfig(),  # noqa: B008 (immutable)
        registry: CollectorRegistry = REGISTRY,
    ) -> None:
        self._settings = settings
        self._metrics = PublisherMetrics(registry)
        self._metrics.queued.set_function(lambda: len(self._queue))
        # No compression: it would take its time on the event loop that answers requests.
        self._producer = Producer(kafka, client_id, compression=None, max_batch_bytes=128 * 1024)
        self._queue: deque[Record] = deque()
        self._bytes = 0
        self._dropped = 0
        self._connected = False
        self._detail = "not yet connected"
        self._refused: dict[str, float] = {}
        self._wake = asyncio.Event()
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start the sender; returns at once, whether Kafka is there or not."""
        self._task = asyncio.create_task(self._run(), name="event-publisher")

    async def stop(self) -> None:
        """Send what waits, for at most `flush_seconds`; what remains is dropped and counted."""
        self._stopping.set()
        self._wake.set()
        if self._task is not None:
            if self._connected:
                await asyncio.wait({self._task}, timeout=self._settings.flush_seconds)
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({self._task}, timeout=_STOP_SECONDS)
            self._task = None
        await self._producer.discard()
        self._connected = False
        self._detail = "stopped"
        while self._queue:
            self._drop(self._take().topic, "stopped")

    def stream_api_event(self, event: ApiEvent) -> bool:
        """Publish one answered request; return False when it was dropped.

        Its values are not checked: they are the API's own, not a client's.
        """
        return self._put(self._settings.api_topic, event, check=False)

    def stream_llm_inference(self, event: Inference) -> bool:
        """Publish one inference, keyed by its model; return False when it was dropped."""
        return self._put(self._settings.inference_topic, event)

    def stream_telemetry(self, event: Telemetry) -> bool:
        """Publish one sample, keyed by its device; return False when it was dropped."""
        return self._put(self._settings.telemetry_topic, event)

    def health(self) -> PublisherHealth:
        """Return the publisher's state."""
        refused = [topic for topic in list(self._refused) if self._is_refused(topic)]
        detail = f"topics refused: {', '.join(sorted(refused))}" if refused else self._detail
        return PublisherHealth(self._connected, len(self._queue), self._dropped, detail)

    def _put(self, topic: str, event: Event, *, check: bool = True) -> bool:
        self._metrics.events(topic).inc()
        try:
            record = Record(topic, encode(event, check=check), event.key.encode())
        except EventError as error:
            _log.warning("invalid event", topic=topic, error=str(error))
            return self._drop(topic, "invalid")
        settings = self._settings
        size = len(record.value)
        if len(self._queue) >= settings.max_events or self._bytes + size > settings.max_bytes:
            return self._drop(topic, "full")
        if self._stopping.is_set():
            return self._drop(topic, "stopped")
        if self._is_refused(topic):
            return self._drop(topic, "refused")
        self._queue.append(record)
        self._bytes += size
        self._wake.set()
        return True

    def _take(self) -> Record:
        record = self._queue.popleft()
        self._bytes -= len(record.value)
        return record

    def _drop(self, topic: str, reason: str) -> bool:
        self._dropped += 1
        self._metrics.dropped.labels(topic, reason).inc()
        return False

    async def _run(self) -> None:
        """Send until told to stop and nothing waits."""
        backoff = Backoff(first=0.25, limit=5.0)
        while not (self._stopping.is_set() and not self._queue):
            try:
                await self._producer.connect()
                self._reached()
                await self._send_or_probe()
            except KAFKA_ERRORS as error:
                await self._failed(error)
                await self._pause(backoff.next())
            else:
                backoff.reset()

    async def _send_or_probe(self) -> None:
        """Send what waits; where nothing comes for a while, see whether Kafka is still there."""
        if not self._queue and not await self._woken(_IDLE_SECONDS):
            await self._producer.probe()
            return
        await self._pause(self._settings.linger_seconds)
        self._wake.clear()
        # What comes meanwhile waits for the next linger: sent at once, each few events would cost
        # Kafka and us a request of their own.
        for _ in range(0, len(self._queue), _ROUND_RECORDS):
            await self._send_round()

    async def _send_round(self) -> None:
        """Send the oldest events; each leaves the queue once Kafka has it or refuses it."""
        records = list(itertools.islice(self._queue, _ROUND_RECORDS))
        results = await self._producer.send_all(records)
        sent: Counts[str] = Counts()
        again: list[Record] = []
        failure: BaseException | None = None
        for record, error in zip(records, results, strict=True):
            self._take()
            if error is None:
                sent[record.topic] += 1
            elif isinstance(error, REFUSALS):
                self._refuse(record, error)
            else:
                again.append(record)
                failure = error
        for topic, count in sent.items():
            self._metrics.sent.labels(topic).inc(count)
        self._queue.extendleft(reversed(again))
        self._bytes += sum(len(record.value) for record in again)
        if failure is not None:
            raise failure

    def _refuse(self, record: Record, error: BaseException) -> None:
        self._drop(record.topic, "refused")
        if isinstance(error, TOPIC_REFUSALS):
            if record.topic not in self._refused:
                _log.error("kafka refuses a topic", topic=record.topic, error=describe(error))
            self._refused[record.topic] = time.monotonic() + _REFUSED_SECONDS

    def _is_refused(self, topic: str) -> bool:
        """Return whether Kafka refused `topic` a moment ago: asking again takes its time."""
        until = self._refused.get(topic)
        if until is not None and time.monotonic() > until:
            del self._refused[topic]
            until = None
        return until is not None

    async def _woken(self, seconds: float) -> bool:
        try:
            await within(seconds, self._wake.wait())
        except TimeoutError:
            return False
        return True

    async def _pause(self, seconds: float) -> None:
        if not self._stopping.is_set():
            with contextlib.suppress(TimeoutError):
                await within(seconds, self._stopping.wait())

    def _reached(self) -> None:
        if not self._connected:
            self._connected, self._detail = True, ""
            self._metrics.connected.set(1)
            _log.info("kafka reachable", queued=len(self._queue))

    async def _failed(self, error: BaseException) -> None:
        self._metrics.failures.inc()
        self._metrics.connected.set(0)
        self._detail = describe(error)
        if self._connected:
            self._connected = False
            _log.warning("kafka unreachable, events wait", error=self._detail)
        await self._producer.discard()

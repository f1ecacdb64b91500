"""Ships buffered samples to Kafka, in order, and forgets them once Kafka has them."""

from __future__ import annotations

import asyncio

import structlog

from prime_spark.kafka.clients import describe
from prime_spark.kafka.producer import KAFKA_ERRORS, Producer
from prime_spark.runtime.backoff import Backoff
from prime_spark.runtime.health import Health
from prime_spark.runtime.service import Service
from prime_spark.telemetry.buffer import DiskBuffer
from prime_spark.telemetry.metrics import TelemetryMetrics

_log = structlog.get_logger(__name__)

MAX_BATCH_BYTES = 256 * 1024
_MAX_BATCH_RECORDS = 1000
_IDLE_SECONDS = 10.0
_DRAIN_SECONDS = 8.0


class Sender:
    """The one task that talks to Kafka; everything else only appends to the buffer."""

    def __init__(
        self,
        *,
        buffer: DiskBuffer,
        producer: Producer,
        topic: str,
        key: str,
        health: Health,
        metrics: TelemetryMetrics,
    ) -> None:
        self._buffer = buffer
        self._producer = producer
        self._topic = topic
        self._key = key.encode()
        self._health = health
        self._metrics = metrics
        self._backoff = Backoff(first=0.5, limit=15.0)
        self._wake = asyncio.Event()

    def wake(self) -> None:
        """There is something new in the buffer."""
        self._wake.set()

    async def run(self, service: Service, finished: asyncio.Event) -> None:
        """Ship until `finished` is set; then ship the rest, unless Kafka is away.

        What is not shipped stays in the buffer for the next start.
        """
        shipping = asyncio.create_task(self._ship_forever(service, finished))
        finishing = asyncio.create_task(finished.wait())
        try:
            await asyncio.wait({shipping, finishing}, return_when=asyncio.FIRST_COMPLETED)
            if self._health.is_ok("kafka"):
                await asyncio.wait({shipping}, timeout=_DRAIN_SECONDS)
            if shipping.done():
                await shipping  # raises what has ended it, should it have failed
        finally:
            finishing.cancel()
            shipping.cancel()
            await self._producer.discard()

    async def _ship_forever(self, service: Service, finished: asyncio.Event) -> None:
        while True:
            service.beat("sender")
            last_round = finished.is_set()
            self._wake.clear()
            try:
                await self._ship_all(service)
            except KAFKA_ERRORS as error:
                await self._failed(error)
                await asyncio.sleep(self._backoff.next())
            else:
                if last_round:
                    return
                await self._idle(finished)

    async def _ship_all(self, service: Service) -> None:
        await self._producer.connect()
        while True:
            service.beat("sender")
            records = await asyncio.to_thread(
                self._buffer.peek, _MAX_BATCH_RECORDS, MAX_BATCH_BYTES // 2
            )
            if not records:
                self._succeeded()
                return
            count = await self._producer.send_ordered(
                self._topic, self._key, [record.payload for record in records]
            )
            await asyncio.to_thread(self._buffer.ack, records[:count])
            self._metrics.sent.inc(count)
            self._succeeded()

    async def _idle(self, finished: asyncio.Event) -> None:
        waiting = [asyncio.ensure_future(self._wake.wait()), asyncio.ensure_future(finished.wait())]
        await asyncio.wait(waiting, timeout=_IDLE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        for task in waiting:
            task.cancel()

    def _succeeded(self) -> None:
        self._backoff.reset()
        if self._health.set("kafka", True):
            _log.info("kafka reachable")

    async def _failed(self, error: BaseException) -> None:
        self._metrics.send_failures.inc()
        if self._health.set("kafka", False, describe(error)):
            _log.warning("kafka unreachable, buffering", error=describe(error))
        await self._producer.discard()

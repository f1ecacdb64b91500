"""prime-spark-telemetry: samples the host and ships the samples to Kafka."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import structlog
from prometheus_client import REGISTRY, CollectorRegistry

from prime_spark.config import fail, service_main
from prime_spark.events import Telemetry, encode
from prime_spark.kafka.producer import Producer
from prime_spark.runtime.health import Health
from prime_spark.runtime.http import StatusServer
from prime_spark.runtime.logs import configure_logging
from prime_spark.runtime.service import Service, run_service, within
from prime_spark.telemetry.buffer import BufferBusyError, BufferStats, DiskBuffer
from prime_spark.telemetry.clock import Clock
from prime_spark.telemetry.collector import Collector, seconds_to_next_tick
from prime_spark.telemetry.metrics import TelemetryMetrics
from prime_spark.telemetry.sender import MAX_BATCH_BYTES, Sender
from prime_spark.telemetry.settings import TelemetryConfig
from prime_spark.telemetry.snapshot import Snapshot

_log = structlog.get_logger(__name__)

_PROBE_SECONDS = 10.0


class TelemetryService:
    """The collector's tasks: sampling, shipping, the Redis hash, flushing the buffer."""

    def __init__(
        self,
        config: TelemetryConfig,
        buffer: DiskBuffer,
        clock: Clock | None = None,
        registry: CollectorRegistry = REGISTRY,
    ) -> None:
        self._clock = clock or Clock()
        self._registry = registry
        self._config = config
        self._buffer = buffer
        self._health = Health("telemetry")
        self._health.expect("sampling", essential=True, detail="no sample yet")
        # Well until the first sample says otherwise, so that a loss at the start is one, too.
        for name, essential in (("buffer", True), ("disk", False)):
            self._health.expect(name, essential=essential)
            self._health.set(name, True)
        self._health.expect("kafka", essential=False)
        self._metrics = TelemetryMetrics(registry, buffer)
        self._collector = Collector(config.device_id, config.disk_path, self._clock)
        self._sender = Sender(
            buffer=buffer,
            producer=Producer(
                config.kafka,
                f"prime-spark-telemetry-{config.device_id}",
                max_batch_bytes=MAX_BATCH_BYTES,
            ),
            topic=config.topic,
            key=config.device_id,
            health=self._health,
            metrics=self._metrics,
        )
        self._snapshot: Snapshot | None = None
        if config.redis is not None:
            self._health.expect("redis", essential=False)
            self._snapshot = Snapshot(config.redis, self._health, self._metrics)
        self._buffer_before = BufferStats()
        # A thread of its own: a probe that hangs must not use up the threads of the event loop.
        self._probe_thread = ThreadPoolExecutor(1, "probe")
        self._probing: asyncio.Future[Telemetry | None] | None = None

    async def run(self, service: Service) -> None:
        """Run until told to stop; what could not be shipped stays in the buffer."""
        sampled_out = asyncio.Event()
        server = StatusServer(self._health, self._registry, self._config.http)
        async with server.listening(), asyncio.TaskGroup() as tasks:
            tasks.create_task(self._sample(service, sampled_out))
            tasks.create_task(self._sender.run(service, sampled_out))
            tasks.create_task(self._flush(service))
            if self._snapshot is not None:
                tasks.create_task(self._snapshot.run(service))
            service.ready(f"sampling every {self._config.interval_seconds:g} s")

    async def _sample(self, service: Service, sampled_out: asyncio.Event) -> None:
        """Take a sample at each multiple of the interval, on the wall clock."""
        interval = self._config.interval_seconds
        try:
            while not await self._wait_for_tick(service, interval):
                self._check_clock()
                await self._take_sample()
        finally:
            sampled_out.set()

    async def _wait_for_tick(self, service: Service, interval: float) -> bool:
        """Sleep to the next tick in short steps; return True when the service is stopping."""
        due = self._clock.monotonic() + seconds_to_next_tick(self._clock.wall(), interval)
        while (remaining := due - self._clock.monotonic()) > 0:
            service.beat("sampling")
            if await service.pause(min(remaining, 30.0)):
                return True
        return service.stop.is_set()

    async def _take_sample(self) -> None:
        """Take one sample and buffer it; skip this tick while the last one still hangs."""
        if self._probing is not None and not self._probing.done():
            self._health.set("sampling", False, "a probe hangs")
            return
        with self._metrics.sample_seconds.time():
            self._probing = asyncio.get_running_loop().run_in_executor(
                self._probe_thread, self._collector.sample
            )
            try:
                sample = await within(_PROBE_SECONDS, asyncio.shield(self._probing))
            except TimeoutError:  # a file system that does not answer, say
                self._health.set("sampling", False, "a probe hangs")
                return
            if sample is None:
                self._health.set("sampling", False, "no probe gives a value")
                return
            await asyncio.to_thread(self._buffer.append, encode(sample))
        self._metrics.samples.inc()
        self._metrics.last_sample.set(sample.time.timestamp())
        self._health.set("sampling", True)
        self._check_buffer()
        self._sender.wake()
        if self._snapshot is not None:
            self._snapshot.offer(sample)

    def _check_clock(self) -> None:
        """Say so when the clock was set: times of samples before and after do not compare."""
        if step := self._clock.step():
            self._metrics.clock_steps.inc()
            _log.warning("the clock was set", seconds=round(step, 3))

    def _check_buffer(self) -> None:
        """Say what the buffer lost since the last sample, and whether the disk takes samples."""
        stats, before = self._buffer.stats(), self._buffer_before
        self._buffer_before = stats
        lost = stats.dropped > before.dropped or stats.damaged > before.damaged
        detail = f"{stats.records} samples waiting"
        if lost:
            detail += f", {stats.dropped} lost and {stats.damaged} buffers damaged since the start"
        if self._health.set("buffer", not lost, detail) and lost:
            _log.error("samples lost", dropped=stats.dropped, damaged_buffers=stats.damaged)
        if self._health.set("disk", not stats.in_memory, stats.error) and stats.in_memory:
            _log.error("samples wait in memory, the disk takes none", error=stats.error)

    async def _flush(self, service: Service) -> None:
        """Flush waiting samples to the device from time to time."""
        while not await service.pause(self._config.buffer.fsync_seconds):
            await asyncio.to_thread(self._buffer.sync)


def run(config: TelemetryConfig) -> int:
    """Run the collector; return the exit status."""
    configure_logging("telemetry", config.log_level)
    try:
        buffer = DiskBuffer(Path(config.buffer.path), config.buffer.max_bytes)
    except BufferBusyError as error:
        fail(f"buffer: {error}")
    try:
        return run_service(lambda service: TelemetryService(config, buffer).run(service))
    finally:
        buffer.close()


def main(argv: Sequence[str] | None = None) -> int:
    """Console entry point."""
    return service_main(
        "prime-spark-telemetry",
        "Sample this host with psutil and ship the samples to Kafka, through a buffer on disk.",
        TelemetryConfig,
        run,
        argv,
    )

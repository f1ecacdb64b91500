"""The newest sample of the host as a Redis hash, for the pipeline."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import redis.asyncio
import structlog
from redis.exceptions import RedisError

from prime_spark.config import RedisConfig, read_credential
from prime_spark.events import Telemetry
from prime_spark.kafka.clients import describe
from prime_spark.runtime.health import Health
from prime_spark.runtime.service import Service, within
from prime_spark.telemetry.metrics import TelemetryMetrics

_log = structlog.get_logger(__name__)

_TIMEOUT_SECONDS = 3.0
_EXPIRE_SECONDS = 24 * 3600  # a host that left the fleet does not stay for ever
_FIELDS = {"cpu": "cpu_percent", "memory": "memory_percent", "disk": "disk_percent"}


class Snapshot:
    """Keeps `metrics:<device_id>` at the newest sample, best effort: it never delays sampling."""

    def __init__(self, config: RedisConfig, health: Health, metrics: TelemetryMetrics) -> None:
        self._client = redis.asyncio.Redis(
            host=config.host,
            port=config.port,
            username=config.username,
            password=read_credential(config.credential),
            socket_timeout=_TIMEOUT_SECONDS,
            socket_connect_timeout=_TIMEOUT_SECONDS,
        )
        self._health = health
        self._metrics = metrics
        self._newest: Telemetry | None = None
        self._wake = asyncio.Event()

    def offer(self, sample: Telemetry) -> None:
        """Replace the sample to be written; an older one not yet written is skipped."""
        self._newest = sample
        self._wake.set()

    async def run(self, service: Service) -> None:
        """Write samples until the service stops."""
        stop = asyncio.create_task(service.stop.wait())
        try:
            while not service.stop.is_set():
                wake = asyncio.create_task(self._wake.wait())
                await asyncio.wait({wake, stop}, return_when=asyncio.FIRST_COMPLETED)
                wake.cancel()
                sample, self._newest = self._newest, None
                self._wake.clear()
                if sample is not None:
                    await self._write(sample)
        finally:
            stop.cancel()
            with contextlib.suppress(RedisError, OSError, TimeoutError):
                await within(1.0, self._client.aclose())

    async def _write(self, sample: Telemetry) -> None:
        try:
            await within(2 * _TIMEOUT_SECONDS, self._replace(sample))
        except (RedisError, OSError, TimeoutError) as error:
            self._metrics.redis_failures.inc()
            if self._health.set("redis", False, describe(error)):
                _log.warning("redis unreachable", error=describe(error))
        else:
            if self._health.set("redis", True):
                _log.info("redis reachable")

    async def _replace(self, sample: Telemetry) -> None:
        key = f"metrics:{sample.device_id}"
        values: dict[Any, Any] = {"time": sample.time.isoformat()}
        for name, metric in _FIELDS.items():
            if metric in sample.metrics:
                values[name] = repr(sample.metrics[metric])
        # No MULTI: the hash is written by one command, and the account needs no more rights.
        async with self._client.pipeline(transaction=False) as pipeline:
            pipeline.hset(key, mapping=values)
            pipeline.expire(key, _EXPIRE_SECONDS)
            await pipeline.execute()

"""prime-spark-kafka-exporter: topics, offsets and consumer groups of Kafka for Prometheus."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import structlog
from kafka.errors import KafkaError
from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge

from prime_spark.config import service_main
from prime_spark.kafka_exporter.cluster import Snapshot, connect, look
from prime_spark.kafka_exporter.metrics import ClusterCollector
from prime_spark.kafka_exporter.settings import KafkaExporterConfig
from prime_spark.runtime.health import Health
from prime_spark.runtime.http import StatusServer
from prime_spark.runtime.logs import configure_logging
from prime_spark.runtime.service import Service, run_service, within

_log = structlog.get_logger(__name__)


class KafkaExporter:
    """Looks at the cluster from time to time; what was seen last is what is scraped."""

    def __init__(self, config: KafkaExporterConfig, registry: CollectorRegistry = REGISTRY) -> None:
        self._config = config
        self._registry = registry
        self._health = Health("kafka-exporter")
        self._health.expect("kafka", essential=True)
        self._collector = ClusterCollector()
        registry.register(self._collector)
        prefix = "prime_spark_kafka_exporter"
        self._failures = Counter(f"{prefix}_failures", "Looks that failed", registry=registry)
        self._last = Gauge(
            f"{prefix}_last_success_timestamp_seconds",
            "When the cluster answered last, 0 for never",
            registry=registry,
        )
        self._client: Any = None
        # The client belongs to one thread.
        self._thread = ThreadPoolExecutor(1, "kafka")

    async def run(self, service: Service) -> None:
        """Run until told to stop."""
        server = StatusServer(self._health, self._registry, self._config.http)
        async with server.listening():
            service.ready(f"looking every {self._config.interval_seconds:g} s")
            while True:
                service.beat("looking")
                await self._look()
                if await service.pause(self._config.interval_seconds):
                    break
        self._thread.submit(self._close)
        self._thread.shutdown(wait=False)

    async def _look(self) -> None:
        looking = asyncio.get_running_loop().run_in_executor(self._thread, self._ask)
        try:
            # Several requests, each with its own limit.
            seen = await within(6 * self._config.timeout_seconds, looking)
        except (KafkaError, OSError, TimeoutError, RuntimeError) as error:
            self._collector.snapshot = None
            self._failures.inc()
            said = " ".join(f"{type(error).__name__}: {error}".split())
            if self._health.set("kafka", False, said):
                _log.warning("Kafka does not answer", error=said)
            return
        self._collector.snapshot = seen
        self._last.set(time.time())
        if self._health.set("kafka", True, f"{len(seen.members)} consumer groups"):
            _log.info("connected", brokers=len(seen.brokers), groups=len(seen.members))

    def _ask(self) -> Snapshot:
        try:
            if self._client is None:
                self._client = connect(self._config.kafka, self._config.timeout_seconds)
            return look(self._client)
        except BaseException:
            # A new connection next time: this one may be one that Kafka no longer knows.
            self._close()
            raise

    def _close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            with contextlib.suppress(KafkaError, OSError, RuntimeError):
                client.close()


def run(config: KafkaExporterConfig) -> int:
    """Run the exporter; return the exit status."""
    configure_logging("kafka-exporter", config.log_level)
    return run_service(lambda service: KafkaExporter(config).run(service))


def main(argv: Sequence[str] | None = None) -> int:
    """Console entry point."""
    return service_main(
        "prime-spark-kafka-exporter",
        "Serve topics, offsets and consumer groups of Kafka as metrics for Prometheus.",
        KafkaExporterConfig,
        run,
        argv,
    )

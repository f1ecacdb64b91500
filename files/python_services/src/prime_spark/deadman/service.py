"""prime-spark-deadman: receives the monitoring's heartbeat, raises the alarm when it stops."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import structlog
from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge

from prime_spark.config import read_credential, service_main
from prime_spark.deadman.channels import Channel, DeliveryError, channels
from prime_spark.deadman.receiver import HeartbeatServer
from prime_spark.deadman.settings import DeadmanConfig
from prime_spark.deadman.watch import Notice, StateFile, Watch
from prime_spark.runtime.backoff import Backoff
from prime_spark.runtime.health import Health
from prime_spark.runtime.logs import configure_logging
from prime_spark.runtime.service import Service, run_service

_log = structlog.get_logger(__name__)

# How late an alarm can be, and how often a channel that fails is tried at first.
_TICK_SECONDS = 1.0


class DeadmanMetrics:
    """What the receiver counts, in `registry`."""

    def __init__(self, registry: CollectorRegistry, watch: Watch, names: Sequence[str]) -> None:
        prefix = "prime_spark_deadman"
        self.heartbeats = Counter(f"{prefix}_heartbeats", "Heartbeats heard", registry=registry)
        self.notifications = Counter(
            f"{prefix}_notifications",
            "Attempts to tell a channel",
            ["channel", "result"],
            registry=registry,
        )
        # A series that begins with its first failure has no rate then.
        for name in names:
            for result in ("sent", "failed"):
                self.notifications.labels(name, result)
        Gauge(
            f"{prefix}_alarm", "1 while the heartbeat has stopped", registry=registry
        ).set_function(lambda: float(watch.alarm))
        Gauge(
            f"{prefix}_last_heartbeat_timestamp_seconds",
            "When the last heartbeat was heard, 0 for never",
            registry=registry,
        ).set_function(lambda: watch.state.heartbeat)


class DeadmanService:
    """The receiver's tasks: listening, watching the silence, telling each channel."""

    def __init__(
        self,
        config: DeadmanConfig,
        ways: dict[str, Channel],
        registry: CollectorRegistry = REGISTRY,
    ) -> None:
        self._config = config
        self._ways = ways
        self._file = StateFile(Path(config.state_path))
        self._saving = asyncio.Lock()
        self._watch = Watch(
            self._file.read(),
            timeout_seconds=config.timeout_seconds,
            repeat_seconds=config.repeat_seconds,
        )
        self._watch.forget(ways)
        self._health = Health("deadman")
        self._health.expect("heartbeat", essential=True)
        self._health.expect("state", essential=False, detail="not written yet")
        for name in ways:
            self._health.expect(f"channel {name}", essential=False)
            self._health.set(f"channel {name}", True, "nothing to say yet")
        self._metrics = DeadmanMetrics(registry, self._watch, list(ways))
        self._server = HeartbeatServer(
            self._health,
            registry,
            config.http,
            token=read_credential(config.credential),
            alert=config.alert,
            on_heartbeat=self._heard,
        )
        if self._watch.alarm:
            self._health.set("heartbeat", False, "stopped before the restart")
        else:
            self._health.set("heartbeat", True, "waiting for the first one since the start")

    async def run(self, service: Service) -> None:
        """Run until told to stop."""
        if not self._ways:
            _log.warning("no channel is configured: an alarm shows in /health and /metrics only")
        await self._save()
        async with (
            self._server.listening(),
            asyncio.TaskGroup() as tasks,
        ):
            tasks.create_task(self._look(service))
            for name, way in self._ways.items():
                tasks.create_task(self._tell(service, name, way))
            service.ready(f"alarm after {self._config.timeout_seconds:g} s without a heartbeat")

    def _heard(self) -> None:
        self._metrics.heartbeats.inc()
        if self._watch.heartbeat():
            _log.info("the heartbeat is back")
        self._health.set("heartbeat", True, "heard")

    async def _look(self, service: Service) -> None:
        """Raise the alarm when the heartbeat has been away for too long; keep the state."""
        saved = self._watch.state.heartbeat
        while not await service.pause(_TICK_SECONDS):
            service.beat("watching")
            if self._watch.check():
                _log.error("the heartbeat has stopped", silence=round(self._watch.silence, 1))
                self._health.set("heartbeat", False, f"none for {self._config.timeout_seconds:g} s")
                await self._save()
            elif saved != self._watch.state.heartbeat:
                saved = self._watch.state.heartbeat
                await self._save()

    async def _tell(self, service: Service, name: str, way: Channel) -> None:
        """Tell one channel what it does not know yet; a channel that fails holds up no other."""
        backoff = Backoff(first=_TICK_SECONDS, limit=60.0)
        pause = _TICK_SECONDS
        while not await service.pause(pause):
            pause = _TICK_SECONDS
            notice = self._watch.due([name]).get(name)
            if notice is None:
                continue
            if await self._send(name, way, notice):
                backoff.reset()
            else:
                pause = backoff.next()

    async def _send(self, name: str, way: Channel, notice: Notice) -> bool:
        try:
            await asyncio.to_thread(way, notice)
        except DeliveryError as error:
            self._metrics.notifications.labels(name, "failed").inc()
            if self._health.set(f"channel {name}", False, str(error)):
                _log.error("a channel does not take the notice", channel=name, error=str(error))
            return False
        self._metrics.notifications.labels(name, "sent").inc()
        self._health.set(f"channel {name}", True, "told")
        _log.info("told", channel=name, alarm=notice.alarm)
        self._watch.told(name, notice)
        await self._save()
        return True

    async def _save(self) -> None:
        """Write the state; a full disk must not keep an alarm from being raised."""
        try:
            # Channels save at the same time: one writer at a time, and the newest state comes last.
            async with self._saving:
                await asyncio.to_thread(self._file.write, self._watch.state)
        except OSError as error:
            if self._health.set("state", False, f"cannot be written: {error.strerror}"):
                _log.error("cannot write the state", error=str(error))
            return
        self._health.set("state", True)


def run(config: DeadmanConfig) -> int:
    """Run the receiver; return the exit status."""
    configure_logging("deadman", config.log_level)
    ways = channels(config)
    return run_service(lambda service: DeadmanService(config, ways).run(service))


def main(argv: Sequence[str] | None = None) -> int:
    """Console entry point."""
    return service_main(
        "prime-spark-deadman",
        "Receive the monitoring's heartbeat from Alertmanager; raise an alarm when it stops.",
        DeadmanConfig,
        run,
        argv,
    )

"""prime-spark-backup as a service: stores what is due, and says in metrics what is stored."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import structlog
from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge

from prime_spark.backup.copies import MissingError, store_copy
from prime_spark.backup.postgres import LostError, Postgres
from prime_spark.backup.processes import ProgramError
from prime_spark.backup.restic import Restic, Stored
from prime_spark.backup.settings import BackupConfig, CopyConfig
from prime_spark.runtime import atomic
from prime_spark.runtime.health import Health
from prime_spark.runtime.http import StatusServer
from prime_spark.runtime.logs import configure_logging
from prime_spark.runtime.service import Service, StoppedError, run_service

_log = structlog.get_logger(__name__)

STATE = "state.json"
_TICK_SECONDS = 1.0
FAILURES = (ProgramError, MissingError, LostError, OSError, sqlite3.Error)


class Success(msgspec.Struct, frozen=True):
    """The last good run of one backup."""

    time: float
    seconds: float
    bytes: int
    added: int


State = dict[str, Success]


def read_state(directory: Path) -> State:
    """Return the last good runs by the backup's name; none where there is no readable file."""
    try:
        return msgspec.json.decode((directory / STATE).read_bytes(), type=State)
    except (OSError, msgspec.MsgspecError):
        return {}


class _Metrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        prefix = "prime_spark_backup"
        labels = ["backup"]

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"{prefix}_{name}", text, labels, registry=registry)

        self.time = gauge("last_success_timestamp_seconds", "When the last good run ended")
        self.seconds = gauge("last_success_duration_seconds", "How long the last good run took")
        self.bytes = gauge("last_success_bytes", "Size of what the last good run read")
        self.added = gauge("last_success_added_bytes", "What the last good run added")
        self.interval = gauge("interval_seconds", "Seconds from one run to the next")
        self.waiting = gauge("wal_waiting_bytes", "Received WAL that is kept on this host")
        self.failures = Counter(f"{prefix}_failures", "Failed runs", labels, registry=registry)
        self.gaps = Counter(
            f"{prefix}_wal_gaps", "Times that WAL was lost", labels, registry=registry
        )


class BackupService:
    """One loop for each backup; what fails is tried again, and holds up no other."""

    def __init__(self, config: BackupConfig, registry: CollectorRegistry = REGISTRY) -> None:
        self._config = config
        self._directory = Path(config.state_directory)
        self._restic = Restic(config)
        self._health = Health("backup")
        self._metrics = _Metrics(registry)
        self._state = read_state(self._directory)
        self._servers = [Postgres(name, one, self._restic) for name, one in config.postgres.items()]
        self._due = {server.name: asyncio.Event() for server in self._servers}
        self._server = StatusServer(self._health, registry, config.http)
        self._health.expect("repository", essential=False)

    async def run(self, service: Service) -> None:
        """Run until told to stop."""
        with contextlib.suppress(StoppedError):
            async with self._server.listening(), asyncio.TaskGroup() as tasks:
                tasks.create_task(self._beat(service))
                for server in self._servers:
                    tasks.create_task(self._receive(service, server))
                    tasks.create_task(self._store_wal(service, server))
                    tasks.create_task(self._store_bases(service, server))
                for name, copy in self._config.copies.items():
                    tasks.create_task(self._store_copies(service, name, copy))
                service.ready()

    async def _beat(self, service: Service) -> None:
        while not await service.pause(_TICK_SECONDS):
            service.beat("waiting")
            for server in self._servers:
                with contextlib.suppress(OSError):
                    self._metrics.waiting.labels(server.name).set(server.waiting_bytes())

    async def _receive(self, service: Service, server: Postgres) -> None:
        component = f"{server.name} stream"
        self._health.expect(component, essential=False)
        self._metrics.gaps.labels(server.name)
        while not service.stop.is_set():
            try:
                self._health.set(component, True, "received")
                await service.unless_stopped(server.receive())
            except StoppedError:
                return
            except LostError as error:
                _log.warning("the WAL starts again", database=server.name, reason=str(error))
                await self._restart_wal(service, server)
            except FAILURES as error:
                if self._health.set(component, False, str(error)):
                    _log.error("the WAL is not received", database=server.name, error=str(error))
                await service.pause(_TICK_SECONDS)

    async def _restart_wal(self, service: Service, server: Postgres) -> None:
        self._metrics.gaps.labels(server.name).inc()
        self._due[server.name].set()
        try:
            await service.unless_stopped(server.restart())
        except StoppedError:
            return
        except FAILURES as error:
            _log.error("the slot cannot be made", database=server.name, error=str(error))
            await service.pause(_TICK_SECONDS)

    async def _store_wal(self, service: Service, server: Postgres) -> None:
        interval = server.config.wal_seconds
        name = f"{server.name}-wal"
        self._expect(name, interval)
        while not service.stop.is_set():
            began = time.monotonic()
            await self._attempt(service, name, server.store_wal)
            with contextlib.suppress(OSError):
                if server.waiting_bytes() > server.config.wal_bytes:
                    _log.error("too much WAL waits, it is given up", database=server.name)
                    await self._restart_wal(service, server)
            await service.pause(interval - (time.monotonic() - began))

    async def _store_bases(self, service: Service, server: Postgres) -> None:
        name = f"{server.name}-base"
        interval = server.config.base_seconds
        self._expect(name, interval)
        due = self._due[server.name]
        while not service.stop.is_set():
            if self._seconds_left(name, interval) > 0 and not due.is_set():
                await service.pause(_TICK_SECONDS)
                continue
            due.clear()
            if not await self._attempt(service, name, server.store_base):
                due.set()
                await service.pause(self._config.retry_seconds)

    async def _store_copies(self, service: Service, name: str, copy: CopyConfig) -> None:
        self._expect(name, copy.seconds)
        while not service.stop.is_set():
            if self._seconds_left(name, copy.seconds) > 0:
                await service.pause(_TICK_SECONDS)
                continue

            async def store() -> Stored:
                return await store_copy(name, copy, self._restic, self._directory)

            if not await self._attempt(service, name, store):
                await service.pause(self._config.retry_seconds)

    def _expect(self, name: str, interval: float) -> None:
        self._health.expect(name, essential=False, detail="not stored yet")
        self._metrics.interval.labels(name).set(interval)
        self._metrics.failures.labels(name)
        if name in self._state:
            self._show(name, self._state[name])

    def _seconds_left(self, name: str, interval: float) -> float:
        if name not in self._state:
            return 0
        # A clock that was set back must not put a backup off.
        return min(self._state[name].time + interval - time.time(), interval)

    async def _attempt(
        self, service: Service, name: str, store: Callable[[], Awaitable[Stored]]
    ) -> bool:
        """Run one backup; return whether it is stored."""
        began = time.monotonic()
        try:
            if not self._health.is_ok("repository"):
                await service.unless_stopped(self._restic.open())
                self._health.set("repository", True)
            stored = await service.unless_stopped(store())
            seconds = time.monotonic() - began
            success = Success(time.time(), seconds, stored.total_bytes_processed, stored.data_added)
            self._state[name] = success
            atomic.replace(self._directory / STATE, msgspec.json.encode(self._state), 0o600)
        except StoppedError:
            return False
        except FAILURES as error:
            self._metrics.failures.labels(name).inc()
            if self._health.set(name, False, str(error)) or time.monotonic() - began > 1:
                _log.error("a backup failed", backup=name, error=str(error))
            return False
        self._show(name, success)
        _log.debug("stored", backup=name, seconds=round(seconds, 1))
        return True

    def _show(self, name: str, success: Success) -> None:
        self._health.set(name, True, "stored")
        self._metrics.time.labels(name).set(success.time)
        self._metrics.seconds.labels(name).set(success.seconds)
        self._metrics.bytes.labels(name).set(success.bytes)
        self._metrics.added.labels(name).set(success.added)


def serve(config: BackupConfig) -> int:
    """Run the service; return the exit status."""
    configure_logging("backup", config.log_level)
    return run_service(lambda service: BackupService(config).run(service))

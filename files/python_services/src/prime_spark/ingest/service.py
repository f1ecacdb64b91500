"""prime-spark-ingest: stores the events of Kafka in TimescaleDB, each exactly once.

A batch is read, stored in one transaction, its refused messages are put into the dead-letter
topic, and only then are its offsets committed. Whatever fails in between is repeated; the primary
keys of the tables make the repetition harmless. The database works on one batch while this
process reads and decodes the next.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter
from collections.abc import Coroutine, Sequence
from typing import Any

import asyncpg
import structlog
from aiokafka import ConsumerRecord
from prometheus_client import REGISTRY

from prime_spark.config import service_main
from prime_spark.ingest import dead_letter_cli
from prime_spark.ingest.batch import Batch
from prime_spark.ingest.dead_letters import DeadLetterQueue
from prime_spark.ingest.metrics import IngestMetrics
from prime_spark.ingest.settings import IngestConfig
from prime_spark.kafka.clients import describe
from prime_spark.kafka.consumer import Consumer, Partition
from prime_spark.kafka.producer import KAFKA_ERRORS, Producer
from prime_spark.runtime.backoff import Backoff
from prime_spark.runtime.health import Health
from prime_spark.runtime.http import StatusServer
from prime_spark.runtime.logs import configure_logging
from prime_spark.runtime.service import Service, StoppedError, run_service
from prime_spark.timeseries.connection import DATABASE_ERRORS, describe_database_error
from prime_spark.timeseries.writer import Writer

_log = structlog.get_logger(__name__)

_PROBE_SECONDS = 5.0
# aiokafka reconnects by itself; when it has not managed for so long, start over with a new one.
_GIVE_UP_PROBES = 5
_BEAT_SECONDS = 1.0
# How often a batch that is read looks whether the one before it is stored.
_SLICE_SECONDS = 0.05
# Fewer records at once are a trickle: wait for more, up to so long.
_TRICKLE_RECORDS = 100
_TRICKLE_SECONDS = 0.02
_LETTERS_AT_ONCE = 200
_COMMIT_AGAIN_SECONDS = 1.0
_MAX_DEAD_LETTER_BYTES = 8 * 1024 * 1024


class Ingest:
    """The ingest loop, and the probes that watch its two servers."""

    def __init__(self, config: IngestConfig) -> None:
        self._config = config
        self._event_types = config.topics.event_types()
        self._consumer = Consumer(
            config.kafka,
            list(self._event_types),
            group_id=config.group_id,
            group_instance_id=config.group_instance_id,
            session_timeout_ms=config.session_timeout_ms,
        )
        self._dead_letters = DeadLetterQueue(
            Producer(
                config.kafka,
                f"{config.group_id}-dead-letters",
                max_request_bytes=_MAX_DEAD_LETTER_BYTES,
            ),
            config.dead_letter_topic,
        )
        self._writer = Writer(config.database)
        self._health = Health("ingest")
        self._health.expect("kafka", essential=True)
        self._health.expect("database", essential=True)
        self._health.expect("dead_letters", essential=True)
        self._health.set("dead_letters", True)
        self._metrics = IngestMetrics(REGISTRY)
        self._backoff = Backoff(first=0.2, limit=10.0)
        self._uncommitted: dict[Partition, int] = {}
        self._commit_again = float("-inf")
        self._failed_probes = 0
        self._database_seen = float("-inf")

    async def run(self, service: Service) -> None:
        """Run until told to stop; what is stored by then is committed."""
        server = StatusServer(self._health, REGISTRY, self._config.http)
        async with server.listening(), asyncio.TaskGroup() as tasks:
            tasks.create_task(self._main_loop(service))
            tasks.create_task(self._watch_kafka(service))
            service.ready("ingesting")

    async def _main_loop(self, service: Service) -> None:
        """Consume; after every failure of Kafka start over with a new consumer."""
        backoff = Backoff(first=0.5, limit=15.0)
        try:
            while not service.stop.is_set():
                service.beat("consume")
                try:
                    await service.unless_stopped(self._consumer.connect())
                    self._kafka_ok()
                    backoff.reset()
                    await self._consume(service)
                except StoppedError:
                    return
                except KAFKA_ERRORS as error:
                    self._kafka_failed(error)
                    self._uncommitted.clear()  # what follows is read again
                    await self._consumer.discard()
                    await service.pause(backoff.next())
        finally:
            await self._consumer.discard()
            await self._dead_letters.discard()
            await self._writer.discard()

    async def _consume(self, service: Service) -> None:
        """Read, store, commit, until told to stop; raises one of KAFKA_ERRORS.

        While one batch is being stored the next is read and decoded, no more than that.
        """
        limits = self._config.batch
        ahead = Batch()
        storing: _Storing | None = None
        try:
            while not service.stop.is_set():
                service.beat("consume")
                if self._failed_probes >= _GIVE_UP_PROBES:
                    raise TimeoutError("the broker does not answer")
                if storing is not None and storing.task.done():
                    done, storing = storing, None
                    if not await self._finish_batch(done, ahead, service):
                        return
                # The next batch first: the database has work while Kafka takes the offsets.
                full = ahead.records >= limits.max_records or ahead.bytes >= limits.max_bytes
                age = time.monotonic() - ahead.since if ahead.records else 0.0
                if storing is None and (full or age >= limits.max_wait_ms / 1000):
                    storing, ahead = _Storing(ahead, self._attempt(ahead)), Batch()
                if self._uncommitted and time.monotonic() >= self._commit_again:
                    await self._commit()
                elif full and storing is not None and ahead.records:
                    await asyncio.wait({storing.task}, timeout=_BEAT_SECONDS)
                else:
                    if storing is None and not ahead.records:
                        await self._check_database()
                    wait = limits.max_wait_ms / 1000 - age
                    await self._read(ahead, min(wait, _SLICE_SECONDS) if storing else wait)
            await self._drain(storing, ahead, service)
            storing = None
        finally:
            if storing is not None:
                storing.task.cancel()
                await asyncio.wait({storing.task})
                await self._writer.discard()

    async def _read(self, batch: Batch, seconds: float) -> None:
        """Add what comes within `seconds` to `batch`, returning as soon as there is something."""
        started = time.monotonic()
        room = self._config.batch.max_records - batch.records
        records = await self._consumer.poll(max(seconds, 0.0), room)
        self._add(batch, records)
        if 0 < len(records) < _TRICKLE_RECORDS:  # gather, rather than ask for every single one
            rest = seconds - (time.monotonic() - started)
            await asyncio.sleep(max(0.0, min(rest, _TRICKLE_SECONDS)))

    def _add(self, batch: Batch, records: Sequence[ConsumerRecord]) -> None:
        """Decode `records` into `batch` and count them."""
        for topic, number in Counter(record.topic for record in records).items():
            self._metrics.messages.labels(topic).inc(number)
        batch.add(records, self._event_types, self._config.max_age)

    async def _attempt(self, batch: Batch) -> None:
        """Try once to store all of `batch`."""
        await self._store(batch)
        await self._dead_letter(batch)

    async def _finish_batch(self, storing: _Storing, ahead: Batch, service: Service) -> bool:
        """See how storing went, and store the batch however long it takes.

        Returns False when told to stop before it was stored. While a server is away the
        partitions are paused and the batch is held; `ahead` takes what a rebalance brings.
        """
        batch, task = storing.batch, storing.task
        while True:
            try:
                await task
            except DATABASE_ERRORS as error:
                await self._database_failed(error)
                if await self._works() and batch.blame(error):
                    self._backoff.reset()
            except _DeadLetterError as error:
                await self._dead_letters_failed(error)
            else:
                self._backoff.reset()
                self._consumer.resume()
                self._uncommitted |= batch.offsets
                self._metrics.batch_seconds.observe(time.monotonic() - storing.since)
                return True
            if service.stop.is_set():
                return False  # not committed: it is read again after the start
            service.beat("consume")
            self._add(ahead, await self._consumer.hold(self._backoff.next()))
            task = asyncio.ensure_future(self._attempt(batch))

    async def _drain(self, storing: _Storing | None, ahead: Batch, service: Service) -> None:
        """Told to stop: store and commit what has been read, unless a server is away."""
        stored = storing is None or await self._finish_batch(storing, ahead, service)
        if stored and ahead.records:
            await self._finish_batch(_Storing(ahead, self._attempt(ahead)), Batch(), service)
        if self._uncommitted:
            await self._commit()

    async def _store(self, batch: Batch) -> None:
        while batch.parts:
            written = await batch.store(self._writer)
            self._metrics.count(written)
            self._database_ok()

    async def _dead_letter(self, batch: Batch) -> None:
        while batch.dead:
            letters = [batch.dead.popleft() for _ in range(min(len(batch.dead), _LETTERS_AT_ONCE))]
            failures = await self._dead_letters.put_all(letters)
            for letter, error in zip(letters, failures, strict=True):
                if error is None:
                    self._metrics.dead_letters.labels(letter.record.topic).inc()
            again = [letter for letter, error in zip(letters, failures, strict=True) if error]
            batch.dead.extendleft(reversed(again))
            if again:
                raise _DeadLetterError(describe(next(filter(None, failures))))
            self._health.set("dead_letters", True)

    async def _commit(self) -> None:
        """Commit what is stored; what Kafka does not take is tried again with the next batch."""
        if await self._consumer.commit(self._uncommitted):
            self._uncommitted.clear()
            self._metrics.last_commit.set_to_current_time()
        else:
            self._commit_again = time.monotonic() + _COMMIT_AGAIN_SECONDS
            self._metrics.retries.labels("commit").inc()

    # -- health -------------------------------------------------------------------------------

    async def _watch_kafka(self, service: Service) -> None:
        """Measure the lag from time to time, which also shows whether the broker answers."""
        while not await service.pause(_PROBE_SECONDS):
            if not self._consumer.joined:
                continue
            try:
                self._metrics.set_lag(await self._consumer.lag())
            except KAFKA_ERRORS as error:
                self._kafka_failed(error)
                self._failed_probes += 1
            else:
                self._kafka_ok()

    def _kafka_ok(self) -> None:
        self._failed_probes = 0
        if self._health.set("kafka", True):
            _log.info("kafka reachable")

    def _kafka_failed(self, error: BaseException) -> None:
        self._metrics.retries.labels("kafka").inc()
        if self._health.set("kafka", False, describe(error)):
            _log.warning("kafka unreachable", error=describe(error))

    async def _check_database(self) -> None:
        """See to it that a database that is away shows even while nothing has to be stored."""
        if time.monotonic() - self._database_seen < _PROBE_SECONDS:
            return
        try:
            await self._writer.check()
        except DATABASE_ERRORS as error:
            await self._database_failed(error)
            self._database_seen = time.monotonic() - _PROBE_SECONDS / 2
        else:
            self._database_ok()

    async def _works(self) -> bool:
        """Whether the database stores rows: then what it refused may be to blame itself."""
        try:
            await self._writer.probe()
        except DATABASE_ERRORS:
            await self._writer.discard()
            return False
        return True

    def _database_ok(self) -> None:
        self._database_seen = time.monotonic()
        if self._health.set("database", True):
            _log.info("database reachable")

    async def _database_failed(self, error: BaseException) -> None:
        await self._writer.discard()
        self._metrics.retries.labels("database").inc()
        detail = describe_database_error(error)
        if isinstance(error, asyncpg.UndefinedTableError):
            detail += " (run prime-spark-db migrate)"
        if self._health.set("database", False, detail):
            _log.warning("database refuses, holding", error=detail)

    async def _dead_letters_failed(self, error: BaseException) -> None:
        await self._dead_letters.discard()
        self._metrics.retries.labels("dead_letters").inc()
        if self._health.set("dead_letters", False, str(error)):
            _log.warning("dead-letter topic refuses, holding", error=str(error))


class _Storing:
    """A batch and the task that stores it."""

    def __init__(self, batch: Batch, attempt: Coroutine[Any, Any, None]) -> None:
        self.batch = batch
        self.task = asyncio.ensure_future(attempt)
        self.since = time.monotonic()


class _DeadLetterError(Exception):
    """A dead letter is not known to be stored."""


def run(config: IngestConfig) -> int:
    """Run ingest; return the exit status."""
    configure_logging("ingest", config.log_level)
    return run_service(lambda service: Ingest(config).run(service))


def main(argv: Sequence[str] | None = None) -> int:
    """Console entry point."""
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] == "dlq":
        return dead_letter_cli.main(argv[1:])
    return service_main(
        "prime-spark-ingest",
        "Store the events of Kafka in TimescaleDB, each exactly once. "
        "`prime-spark-ingest dlq --help` is about the messages that could not be stored.",
        IngestConfig,
        run,
        argv,
    )


if __name__ == "__main__":
    sys.exit(main())

from __future__ import annotations

import asyncio
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prime_spark.events import Event, Telemetry, encode
from prime_spark.ingest.batch import Batch
from prime_spark.kafka.consumer import Partition
from prime_spark.telemetry.settings import BufferConfig
from prime_spark.timeseries.connection import is_data_error
from prime_spark.timeseries.migrate import Migration, MigrationError, _pending, packaged_migrations
from prime_spark.timeseries.rows import Rows
from prime_spark.timeseries.writer import Written

NOW = datetime(2026, 3, 1, tzinfo=UTC)
MAX_AGE = timedelta(days=180)
TYPES: dict[str, type[Event]] = {"t": Telemetry}


@dataclass
class Record:
    """As much of a Kafka record as a batch looks at."""

    offset: int
    value: bytes | None
    topic: str = "t"
    partition: int = 0


def record(number: int) -> Record:
    return Record(number, encode(Telemetry(time=NOW, device_id="h", metrics={"n": float(number)})))


def value_of(rows: Rows) -> float:
    """The value in the one row of a sample without metadata: what comes before the final NULL."""
    value: float = struct.unpack("!d", rows.data[-12:-4])[0]
    return value


@dataclass
class PickyWriter:
    """Refuses transactions that contain a bad number, as PostgreSQL refuses bad rows."""

    bad: set[int]
    stored: list[int] = field(default_factory=list)
    calls: int = 0
    transient: set[int] = field(default_factory=set)

    async def write(self, events: Sequence[Rows]) -> Written:
        self.calls += 1
        if self.calls in self.transient:
            raise asyncpg.CannotConnectNowError("starting up")
        numbers = [int(value_of(rows)) for rows in events]
        if self.bad & set(numbers):
            raise asyncpg.CheckViolationError("bad row")
        self.stored += numbers
        return Written()


def store(batch: Batch, writer: Any) -> int:
    """Store all parts, repeating after transient errors; return how many there were."""

    async def go() -> int:
        failures = 0
        while batch.parts:
            try:
                await batch.store(writer)
            except asyncpg.CannotConnectNowError:
                failures += 1
        return failures

    return asyncio.run(go())


@given(
    count=st.integers(min_value=1, max_value=60),
    bad=st.sets(st.integers(min_value=0, max_value=59), max_size=8),
    transient=st.sets(st.integers(min_value=1, max_value=20), max_size=5),
)
def test_bad_rows_cost_no_good_row(count: int, bad: set[int], transient: set[int]) -> None:
    writer = PickyWriter(bad, transient=transient)
    batch = Batch()
    records: list[Any] = [record(number) for number in range(count)]
    batch.add(records, TYPES, MAX_AGE, NOW)
    store(batch, writer)
    assert writer.stored == [number for number in range(count) if number not in bad]
    dead = [letter.record.offset for letter in batch.dead]
    assert dead == sorted(number for number in bad if number < count)
    assert all("23514: bad row" in letter.reason for letter in batch.dead)


def test_bisection_is_logarithmic() -> None:
    writer = PickyWriter({777})
    batch = Batch()
    records: list[Any] = [record(number) for number in range(1024)]
    batch.add(records, TYPES, MAX_AGE, NOW)
    store(batch, writer)
    assert len(writer.stored) == 1023
    assert writer.calls <= 2 * 10 + 1


@dataclass
class StumblingWriter:
    """Fails, for no reason that its error names, at transactions with a guilty number."""

    guilty: set[int]
    error: Exception
    stored: list[int] = field(default_factory=list)

    async def write(self, events: Sequence[Rows]) -> Written:
        numbers = [int(value_of(rows)) for rows in events]
        if self.guilty & set(numbers):
            raise self.error
        self.stored += numbers
        return Written()


def attempts(batch: Batch, writer: Any, limit: int) -> int:
    """Store in `limit` attempts what can be, blaming the batch each time; return how many."""

    async def go() -> int:
        for attempt in range(limit):
            try:
                while batch.parts:
                    await batch.store(writer)
            except asyncpg.PostgresError as error:
                batch.blame(error)
            else:
                return attempt
        return limit

    return asyncio.run(go())


def test_what_makes_the_server_fail_again_and_again_is_found() -> None:
    writer = StumblingWriter({5, 77}, asyncpg.OutOfMemoryError("out of shared memory"))
    batch = Batch()
    records: list[Any] = [record(number) for number in range(100)]
    batch.add(records, TYPES, MAX_AGE, NOW)
    assert attempts(batch, writer, 50) < 50
    assert [letter.record.offset for letter in batch.dead] == [5, 77]
    assert sorted(writer.stored) == [number for number in range(100) if number not in {5, 77}]


@pytest.mark.parametrize(
    "error",
    [
        asyncpg.DiskFullError("x"),
        asyncpg.TooManyConnectionsError("x"),
        asyncpg.AdminShutdownError("x"),
        asyncpg.CannotConnectNowError("x"),
        asyncpg.ReadOnlySQLTransactionError("x"),
        asyncpg.InsufficientPrivilegeError("x"),
        asyncpg.UndefinedTableError("x"),
        asyncpg.PostgresIOError("x"),
    ],
)
def test_no_message_is_blamed_for_the_servers_condition(error: Exception) -> None:
    batch = Batch()
    batch.add([record(1)], TYPES, MAX_AGE, NOW)  # type: ignore[list-item]
    assert attempts(batch, StumblingWriter({1}, error), 20) == 20
    assert not batch.dead
    assert batch.parts


def test_once_is_no_proof() -> None:
    batch = Batch()
    batch.add([record(1)], TYPES, MAX_AGE, NOW)  # type: ignore[list-item]
    writer = StumblingWriter({1}, asyncpg.DeadlockDetectedError("x"))
    assert attempts(batch, writer, 2) == 2
    writer.guilty.clear()
    assert attempts(batch, writer, 1) == 0
    assert not batch.dead


def test_a_transaction_is_of_few_days() -> None:
    days = list(range(200)) * 3
    moments = [NOW - timedelta(days=day % 170) for day in days]
    sizes: list[int] = []

    class Recorder:
        async def write(self, events: Sequence[Rows]) -> Written:
            sizes.append(len({rows.day for rows in events}))
            return Written()

    records: list[Any] = [
        Record(number, encode(Telemetry(time=moment, device_id="h", metrics={"n": 1.0})))
        for number, moment in enumerate(moments)
    ]
    batch = Batch()
    batch.add(records, TYPES, MAX_AGE, NOW)
    store(batch, Recorder())
    assert sum(sizes) == 170
    assert max(sizes) == 32


def test_the_oldest_sample_of_a_full_buffer_is_young_enough() -> None:
    names = ("cpu_percent", "disk_percent", "load_avg", "memory_percent")
    smallest = encode(Telemetry(time=NOW, device_id="a", metrics=dict.fromkeys(names, 0.0)))
    held = BufferConfig("buffer").max_bytes / len(smallest) * timedelta(seconds=30)
    assert timedelta(days=150) < held < timedelta(days=180)


def test_offsets_cover_dead_letters_too() -> None:
    batch = Batch()
    records: list[Any] = [Record(7, b"bad"), record(5), Record(3, None, partition=1)]
    batch.add(records, TYPES, MAX_AGE, NOW)
    assert batch.offsets == {Partition("t", 0): 8, Partition("t", 1): 4}
    assert [letter.record.offset for letter in batch.dead] == [7, 3]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (asyncpg.NumericValueOutOfRangeError("x"), True),
        (asyncpg.CheckViolationError("x"), True),
        (asyncpg.UntranslatableCharacterError("x"), True),
        (asyncpg.ProgramLimitExceededError("x"), True),
        (asyncpg.DataError("x"), True),
        (OverflowError("x"), True),
        (asyncpg.SerializationError("x"), False),
        (asyncpg.DeadlockDetectedError("x"), False),
        (asyncpg.AdminShutdownError("x"), False),
        (asyncpg.CannotConnectNowError("x"), False),
        (asyncpg.DiskFullError("x"), False),
        (asyncpg.UndefinedTableError("x"), False),
        (asyncpg.InsufficientPrivilegeError("x"), False),
        (asyncpg.ReadOnlySQLTransactionError("x"), False),
        (asyncpg.InternalServerError("x"), False),
        (asyncpg.ConnectionDoesNotExistError("x"), False),
        (asyncpg.InterfaceError("x"), False),
        (ConnectionResetError(), False),
        (TimeoutError(), False),
    ],
)
def test_whose_fault_an_error_is(error: Exception, expected: bool) -> None:
    assert is_data_error(error) is expected


def test_migration_history() -> None:
    one, two, three = (Migration(name, f"SELECT '{name}'") for name in ("1", "2", "3"))
    assert _pending([one, two], {}) == [one, two]
    assert _pending([one, two], {"1": one.checksum}) == [two]
    with pytest.raises(MigrationError, match="migration 1 was changed"):
        _pending([one, two], {"1": "other"})
    with pytest.raises(MigrationError, match="does not know: 2"):
        _pending([one], {"1": one.checksum, "2": two.checksum})
    with pytest.raises(MigrationError, match="2 comes before 3"):
        _pending([one, two, three], {"1": one.checksum, "3": three.checksum})


def test_packaged_migrations_are_in_order() -> None:
    names = [migration.name for migration in packaged_migrations()]
    assert names == sorted(names)
    assert names[0] == "0001_initial"

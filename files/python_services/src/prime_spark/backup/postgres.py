"""PostgreSQL: base backups, the stream of its WAL, and what a restore has to contain.

A base backup is a copy of the running server's files; with the WAL from its beginning on it can
be brought to any later second. pg_receivewal writes the WAL into a directory as it comes into
being, and that directory is stored every few seconds. What the stored directory begins with is
the snapshot's tag `from-SEGMENT`: it serves every base that began at that segment or later.
"""

# ruff: noqa: S608 (names in statements are of the configuration and of the catalogue, quoted)

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import structlog

from prime_spark.backup.processes import ProgramError, end, run
from prime_spark.backup.restic import INCOMPLETE, Restic, Stored
from prime_spark.backup.settings import PostgresConfig

_log = structlog.get_logger(__name__)

_SEGMENT = re.compile(r"^[0-9A-F]{24}(\.partial)?\Z")
_PSQL = ("psql", "--no-psqlrc", "--quiet", "--tuples-only", "--no-align")
_LOCK_ATTEMPTS = 10
_STORE_ATTEMPTS = 3
_LOCK_PAUSE_SECONDS = 3.0

# Everything that is committed before has come to pg_receivewal when this ends. The transaction has
# an id, so that its end is in the WAL: a recovery to any time before it finds where to stop.
_FLUSH = """
SELECT pg_current_xact_id() IS NULL;
SELECT set_config('backup.lsn', pg_current_wal_lsn()::text, false) IS NULL;
DO $$ BEGIN
  FOR attempt IN 1..100 LOOP
    IF EXISTS (SELECT FROM pg_replication_slots s JOIN pg_stat_replication r ON r.pid = s.active_pid
        WHERE s.slot_name = '{slot}' AND r.write_lsn >= current_setting('backup.lsn')::pg_lsn) THEN
      RETURN;
    END IF;
    PERFORM pg_sleep(0.05);
  END LOOP;
  RAISE EXCEPTION 'the WAL is not received';
END $$;
"""

_TABLES = """
SELECT c.oid::regclass FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relpersistence = 'p'
AND n.nspname !~ '^(pg_|_?timescaledb|information_schema$)' ORDER BY 1
"""


class Table(msgspec.Struct, frozen=True):
    """What a table held: the number of its rows, and the sum of their hashes."""

    rows: int
    checksum: str


class BaseRecord(msgspec.Struct, frozen=True):
    """Stored when a base backup and the WAL that it needs are; without it the base is unfinished.

    `tables` is what the database held at the restore point `point`.
    """

    segment: str
    began: float
    ended: float
    point: str
    database: str
    tables: dict[str, Table]


class LostError(Exception):
    """WAL is missing: only a new base backup can be brought to a later second."""


class Postgres:
    """One database server and its backups. Methods may raise ProgramError."""

    def __init__(self, name: str, config: PostgresConfig, restic: Restic) -> None:
        self.name = name
        self.config = config
        self._restic = restic
        self._wal = Path(config.wal_directory)
        self._reading = asyncio.Lock()  # no WAL is removed while it is stored

    async def sql(self, statements: str, database: str = "postgres") -> list[str]:
        """Return the lines that statements print."""
        argv = [*self.config.command, *_PSQL, "--set", "ON_ERROR_STOP=1", "--dbname", database]
        return (await run(argv, stdin=statements.encode())).decode().splitlines()

    async def receive(self) -> None:
        """Receive WAL until the server or this process ends; raise LostError when some is missing.

        There is one receiver: one that a killed process left behind is ended.
        """
        slot = self.config.slot
        lost = await self._prepare_slot()
        if lost:
            raise LostError(lost)
        argv = [*self.config.command, "pg_receivewal", "--no-loop", "--no-password"]
        argv += ["--directory", self.config.wal_path, "--slot", slot, "--status-interval=1"]
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            assert process.stderr is not None  # noqa: S101 (it is a pipe)
            error = await process.stderr.read()
            raise ProgramError(argv[-6:], await process.wait(), error)
        finally:
            await end(process)

    async def restart(self) -> None:
        """Forget the WAL received so far and begin with what the server writes from now on."""
        await self._end_receiver()
        async with self._reading:
            await self._remove([path.name for path in self._files()])
        slot = self.config.slot
        await self.sql(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots"
            f" WHERE slot_name = '{slot}';"
            f"SELECT slot_name FROM pg_create_physical_replication_slot('{slot}', true);"
        )

    def waiting_bytes(self) -> int:
        """Return the size of the WAL directory."""
        return sum(path.stat().st_size for path in self._files())

    async def store_wal(self) -> Stored:
        """Store the WAL up to this moment."""
        async with self._reading:
            await self.sql(_FLUSH.format(slot=self.config.slot))
            names = sorted(path.name for path in self._files() if _SEGMENT.match(path.name))
            if not names:
                raise LostError("the directory of received WAL is empty")
            tags = [self.name, "wal", f"from-{names[0][:24]}"]
            for _ in range(_STORE_ATTEMPTS - 1):
                try:
                    return await self._restic.store_paths(tags, [self.config.wal_directory])
                except ProgramError as error:
                    # A segment has got its final name meanwhile.
                    if error.status != INCOMPLETE:
                        raise
            return await self._restic.store_paths(tags, [self.config.wal_directory])

    async def store_base(self) -> Stored:
        """Store a base backup, the WAL that it needs and its record; drop older WAL."""
        await self.sql(_FLUSH.format(slot=self.config.slot))  # nothing is stored without WAL
        (segment,) = await self.sql("SELECT pg_walfile_name(pg_current_wal_lsn())")
        began = time.time()
        command = [*self.config.command, "pg_basebackup", "--no-password", "--pgdata=-"]
        command += ["--format=tar", "--wal-method=none", "--checkpoint=fast"]
        tags = [self.name, "base", f"from-{segment}"]
        stored = await self._restic.store_output(f"{self.name}-base.tar", tags, command)
        ended = time.time()
        point, tables = await self._manifest(segment)
        await self.store_wal()
        record = BaseRecord(segment, began, ended, point, self.config.database, tables)
        tags = [self.name, "record", f"from-{segment}"]
        content = msgspec.json.encode(record)
        await self._restic.store_bytes(f"{self.name}-base.json", tags, content)
        names = [path.name for path in self._files()]
        old = [name for name in names if _SEGMENT.match(name) and name[:24] < segment]
        async with self._reading:
            await self._remove(old)
        return stored

    async def _prepare_slot(self) -> str:
        """Free the slot of an earlier receiver; return what is wrong with it, if anything."""
        slot = self.config.slot
        await self._end_receiver()
        found = await self.sql(
            f"SELECT wal_status FROM pg_replication_slots WHERE slot_name = '{slot}'"
        )
        if not found:
            return "the replication slot is gone"
        if found[0] == "lost":
            return "the server has dropped WAL that was not received"
        return ""

    async def _end_receiver(self) -> None:
        await self.sql(
            "SELECT pg_terminate_backend(active_pid, 5000) FROM pg_replication_slots"
            f" WHERE slot_name = '{self.config.slot}' AND active"
        )

    def _files(self) -> list[Path]:
        return [path for path in self._wal.iterdir() if path.is_file()]

    async def _remove(self, names: list[str]) -> None:
        """Remove WAL files, as the user that wrote them."""
        paths = [f"{self.config.wal_path}/{name}" for name in names]
        if paths:
            await run([*self.config.command, "rm", "--force", "--", *paths])

    async def _manifest(self, segment: str) -> tuple[str, dict[str, Table]]:
        """Return the name of a restore point, and what the tables hold at it.

        For the moment in which the restore point is made, writers of the tables wait: its place in
        the WAL and what a snapshot sees are then the same. Counting needs no lock.
        """
        point = f"prime-spark-{segment}-{int(time.time())}"
        for attempt in range(_LOCK_ATTEMPTS):
            try:
                return point, await self._count_at(point)
            except ProgramError as error:
                if attempt + 1 == _LOCK_ATTEMPTS:
                    raise
                _log.info("the manifest is tried again", error=str(error))
                await asyncio.sleep(_LOCK_PAUSE_SECONDS)
        raise AssertionError("not reached")

    async def _count_at(self, point: str) -> dict[str, Table]:
        database = self.config.database
        tables = await self.sql(_TABLES, database)
        if not tables:
            return {}
        holder = _Session(self.config.command, database)
        counter = _Session(self.config.command, database)
        async with holder, counter:
            await holder.ask("SET lock_timeout = '2s'; BEGIN; SELECT 1")
            # First the lock, then the snapshot: what committed while it waited is seen.
            await holder.ask(f"LOCK TABLE {', '.join(tables)} IN SHARE MODE; SELECT 1")
            snapshot = await holder.ask("SELECT pg_export_snapshot()")
            await counter.ask(
                "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;"
                f"SET TRANSACTION SNAPSHOT '{snapshot}'; SELECT count(*) FROM pg_class"
            )
            await holder.ask(f"SELECT pg_create_restore_point('{point}')")
            await holder.ask("COMMIT; SELECT 1")
            return {table: await _count(counter, table) for table in tables}


async def count_tables(command: Sequence[str], database: str) -> dict[str, Table]:
    """Return what the tables of a database hold now."""
    session = _Session(command, database)
    async with session:
        listed = await run([*command, *_PSQL, "--dbname", database], stdin=_TABLES.encode())
        return {table: await _count(session, table) for table in listed.decode().splitlines()}


def differences(expected: Mapping[str, Table], found: Mapping[str, Table]) -> list[str]:
    """Return one sentence for each table that is not as expected."""
    nothing = Table(0, "0")
    sentences = []
    for name in sorted({*expected, *found}):
        wanted, there = expected.get(name, nothing), found.get(name, nothing)
        if wanted.rows != there.rows:
            sentences.append(f"{name}: {there.rows} rows instead of {wanted.rows}")
        elif wanted != there:
            sentences.append(f"{name}: other content in {wanted.rows} rows")
    return sentences


async def _count(session: _Session, table: str) -> Table:
    line = await session.ask(
        f"SELECT count(*), coalesce(sum(hashtextextended(t::text, 0)::numeric), 0) FROM {table} t"
    )
    rows, _, checksum = line.partition("|")
    return Table(int(rows), checksum)


class _Session:
    """A psql that is asked one thing after the other; each answer is one line."""

    def __init__(self, command: Sequence[str], database: str) -> None:
        self._argv = [*command, *_PSQL, "--set", "ON_ERROR_STOP=1", "--dbname", database]
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> _Session:
        pipe = asyncio.subprocess.PIPE
        self._process = await asyncio.create_subprocess_exec(
            *self._argv, stdin=pipe, stdout=pipe, stderr=pipe
        )
        # As the text of values depends on it.
        await self.ask("SET timezone = 'UTC'; SET extra_float_digits = 1; SELECT 1")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._process is not None:
            await end(self._process)

    async def ask(self, statement: str) -> str:
        process = self._process
        assert process is not None  # noqa: S101
        assert process.stdin is not None  # noqa: S101
        assert process.stdout is not None  # noqa: S101
        assert process.stderr is not None  # noqa: S101
        process.stdin.write(statement.encode() + b";\n")
        await process.stdin.drain()
        line = await process.stdout.readline()
        if not line:
            raise ProgramError(["psql"], await process.wait(), await process.stderr.read())
        return line.decode().strip()

"""Writes rows to their tables: COPY into a staging table, then INSERT ... ON CONFLICT."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from prime_spark.config import DatabaseConfig
from prime_spark.events import Telemetry
from prime_spark.timeseries.connection import connect
from prime_spark.timeseries.rows import (
    COPY_HEADER,
    COPY_TRAILER,
    DEVICE_METRICS,
    TABLES,
    Rows,
    Table,
    encode_rows,
)

_COMMAND_SECONDS = 60.0
_CHECK_SECONDS = 10.0


@dataclass
class Written:
    """Rows inserted, and rows that were there already, by table."""

    rows: dict[str, int] = field(default_factory=dict)
    duplicates: dict[str, int] = field(default_factory=dict)

    def add(self, table: str, rows: int, duplicates: int) -> None:
        """Count the outcome for one table."""
        self.rows[table] = self.rows.get(table, 0) + rows
        self.duplicates[table] = self.duplicates.get(table, 0) + duplicates


class Writer:
    """Stores rows, one transaction per call; makes a new connection after `discard`."""

    def __init__(self, config: DatabaseConfig, application: str = "prime-spark-ingest") -> None:
        self._config = config
        self._application = application
        self._connection: Any = None

    async def connect(self) -> None:
        """Connect if not connected; fails when the schema is not there yet."""
        if self._connection is not None and not self._connection.is_closed():
            return
        connection = await connect(
            self._config, self._application, command_timeout=_COMMAND_SECONDS
        )
        try:
            for table in TABLES:
                await connection.execute(
                    f"CREATE TEMPORARY TABLE {_staging(table)}"
                    f" (LIKE public.{table.name}) ON COMMIT DELETE ROWS"
                )
        except BaseException:
            connection.terminate()
            raise
        self._connection = connection

    async def check(self) -> None:
        """Raise what `write` would raise for a database that is away or not migrated."""
        await self.connect()
        await self._connection.execute("SELECT 1", timeout=_CHECK_SECONDS)

    async def probe(self) -> None:
        """Raise what `write` would raise for any rows: store a sample and take it back."""
        sample = Telemetry(time=datetime.now(UTC), device_id="probe", metrics={"probe": 0.0})
        async with asyncio.timeout(_CHECK_SECONDS):
            await self.connect()
            transaction = self._connection.transaction()
            await transaction.start()
            await self._insert(DEVICE_METRICS, [encode_rows(sample).data])
            await transaction.rollback()

    async def write(self, events: Sequence[Rows]) -> Written:
        """Store the rows of `events`, all of them or, with an exception, none."""
        await self.connect()
        by_table: dict[Table, list[Rows]] = {}
        for rows in events:
            by_table.setdefault(rows.table, []).append(rows)
        written = Written()
        async with self._connection.transaction():
            # In one order for all processes: two with rows of the same tables cannot deadlock.
            for table in TABLES:
                if (group := by_table.get(table)) is None:
                    continue
                inserted = await self._insert(table, [rows.data for rows in group])
                written.add(table.name, inserted, sum(rows.number for rows in group) - inserted)
        return written

    async def discard(self) -> None:
        """Drop the connection: after an error its state is not known."""
        connection, self._connection = self._connection, None
        if connection is not None and not connection.is_closed():
            connection.terminate()

    async def _insert(self, table: Table, data: list[bytes]) -> int:
        """Insert the rows in `data` that are not there yet; return how many were not."""
        await self._connection.copy_to_table(
            _staging(table),
            source=_stream(data),
            columns=table.columns,
            format="binary",
            timeout=_COMMAND_SECONDS,
        )
        columns = ", ".join(table.columns)
        # DO NOTHING also takes care of a key that is twice in the same batch. In the order of
        # the key, two processes with the same rows wait for each other instead of deadlocking.
        answer: str = await self._connection.execute(
            f"INSERT INTO public.{table.name} ({columns})"  # noqa: S608 (constants above)
            f" SELECT {columns} FROM {_staging(table)} ORDER BY {', '.join(table.key)}"
            " ON CONFLICT DO NOTHING"
        )
        return int(answer.rsplit(" ", 1)[1])


async def _stream(data: list[bytes]) -> AsyncIterator[bytes]:
    """Yield a complete COPY: header, rows, trailer."""
    yield b"".join((COPY_HEADER, *data, COPY_TRAILER))


def _staging(table: Table) -> str:
    return f"staging_{table.name}"

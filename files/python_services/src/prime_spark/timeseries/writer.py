"""Writes events to their tables: COPY into a staging table, then INSERT ... ON CONFLICT."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from prime_spark.config import DatabaseConfig
from prime_spark.events import ApiEvent, Event, Inference, Telemetry
from prime_spark.timeseries.connection import connect

Row = tuple[object, ...]

_COMMAND_SECONDS = 60.0
_CHECK_SECONDS = 10.0


@dataclass(frozen=True)
class Table:
    """A table, and its columns in the order of the rows made for it."""

    name: str
    columns: tuple[str, ...]


DEVICE_METRICS = Table(
    "device_metrics",
    ("time", "device_id", "metric_name", "value", "metadata"),
)
AI_INFERENCE_RESULTS = Table(
    "ai_inference_results",
    (
        "time", "event_id", "model_name", "input_tokens", "output_tokens", "prompt_chars",
        "response_chars", "latency_ms", "source", "metadata",
    ),
)  # fmt: skip
API_EVENTS = Table(
    "api_events",
    (
        "time", "event_id", "method", "endpoint", "status", "duration_ms", "user_name", "metadata",
    ),
)  # fmt: skip
TABLES = (DEVICE_METRICS, AI_INFERENCE_RESULTS, API_EVENTS)


@dataclass
class Written:
    """Rows inserted, and rows that were there already, by table."""

    rows: dict[str, int] = field(default_factory=dict)
    duplicates: dict[str, int] = field(default_factory=dict)

    def add(self, table: str, rows: int, duplicates: int) -> None:
        """Count the outcome for one table."""
        self.rows[table] = self.rows.get(table, 0) + rows
        self.duplicates[table] = self.duplicates.get(table, 0) + duplicates


def rows_of(event: Event) -> tuple[Table, list[Row]]:
    """Return the table of `event` and the rows it becomes."""
    metadata = msgspec.json.encode(event.metadata).decode() if event.metadata else None
    match event:
        case Telemetry():
            return DEVICE_METRICS, [
                (event.time, event.device_id, name, value, metadata)
                for name, value in event.metrics.items()
            ]
        case Inference():
            return AI_INFERENCE_RESULTS, [
                (
                    event.time, event.event_id, event.model_name, event.input_tokens,
                    event.output_tokens, event.prompt_chars, event.response_chars,
                    event.latency_ms, event.source, metadata,
                )
            ]  # fmt: skip
        case ApiEvent():
            return API_EVENTS, [
                (
                    event.time, event.event_id, event.method, event.endpoint, event.status,
                    event.duration_ms, event.user_name, metadata,
                )
            ]  # fmt: skip
        case _:
            raise TypeError(f"no table for {type(event).__name__}")


class Writer:
    """Stores events, one transaction per call; makes a new connection after `discard`."""

    def __init__(self, config: DatabaseConfig) -> None:
        self._config = config
        self._connection: Any = None

    async def connect(self) -> None:
        """Connect if not connected; fails when the schema is not there yet."""
        if self._connection is not None and not self._connection.is_closed():
            return
        connection = await connect(
            self._config, "prime-spark-ingest", command_timeout=_COMMAND_SECONDS
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

    async def write(self, events: Sequence[Event]) -> Written:
        """Store `events`, all of them or, with an exception, none."""
        await self.connect()
        by_table: dict[Table, list[Row]] = {}
        for event in events:
            table, rows = rows_of(event)
            by_table.setdefault(table, []).extend(rows)
        written = Written()
        async with self._connection.transaction():
            for table, rows in by_table.items():
                inserted = await self._insert(table, rows)
                written.add(table.name, inserted, len(rows) - inserted)
        return written

    async def discard(self) -> None:
        """Drop the connection: after an error its state is not known."""
        connection, self._connection = self._connection, None
        if connection is not None and not connection.is_closed():
            connection.terminate()

    async def _insert(self, table: Table, rows: list[Row]) -> int:
        """Insert `rows` that are not there yet; return how many were not."""
        await self._connection.copy_records_to_table(
            _staging(table), records=rows, columns=table.columns, timeout=_COMMAND_SECONDS
        )
        columns = ", ".join(table.columns)
        # DO NOTHING also takes care of a key that is twice in the same batch.
        answer: str = await self._connection.execute(
            f"INSERT INTO public.{table.name} ({columns})"  # noqa: S608 (constants above)
            f" SELECT {columns} FROM {_staging(table)} ON CONFLICT DO NOTHING"
        )
        return int(answer.rsplit(" ", 1)[1])


def _staging(table: Table) -> str:
    return f"staging_{table.name}"

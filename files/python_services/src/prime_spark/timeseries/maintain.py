"""Keeps the time series in bounds: rollups, retention and, where the licence has it, compression.

The rollups are the same tables under either licence of TimescaleDB, filled here and not by its
continuous aggregates: retention has to wait until an hour is rolled up, which policies that know
nothing of each other cannot promise, and a reader finds the same names, columns and values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import msgspec

from prime_spark.config import Config, Positive

_LOCK_KEY = 0x5052494D46
_ROLLUPS = {"device_metrics_5m": "5 minutes", "device_metrics_1h": "1 hour"}
_EVENTS = ("ai_inference_results", "api_events")
# Chunks that one transaction drops: each takes about ten of the locks that the server has for all.
_CHUNKS = 20

Days = Annotated[int, msgspec.Meta(ge=1, le=36500)]


class MaintenanceConfig(Config, frozen=True):
    """How long data stays, in days, and how much one run may do."""

    raw_days: Days = 30
    events_days: Days = 90
    rollup_5m_days: Days = 180
    rollup_1h_days: Days = 1095
    # Only under the Timescale licence; later than samples are ever late.
    compress_after_days: Days = 7
    max_hours: Positive = 500
    # Longer than Kafka keeps a message, which after that cannot be stored a second time.
    late_days: Annotated[int, msgspec.Meta(ge=0, le=36500)] = 8

    def __post_init__(self) -> None:
        if not self.raw_days <= self.rollup_5m_days <= self.rollup_1h_days:
            raise ValueError("expected raw_days <= rollup_5m_days <= rollup_1h_days")
        # Compressed chunks take late rows too, but slowly.
        if self.compress_after_days < 2:
            raise ValueError("compress_after_days must be at least 2")


@dataclass(frozen=True)
class Maintenance:
    """What a run did.

    `pending` hours are left for the next run. Rows of `late` hours came after those had been
    dropped, and were added to their rollups; those of `waiting` hours will be.
    """

    changed: bool
    busy: bool = False
    licence: str = ""
    hours: int = 0
    rows: int = 0
    late: int = 0
    waiting: int = 0
    pending: int = 0
    dropped: int = 0
    policies: int = 0


async def maintain(
    connection: Any, config: MaintenanceConfig, now: datetime | None = None
) -> Maintenance:
    """Roll up what was stored since, then drop what is old; a second run beside it is `busy`.

    Each hour is a transaction of its own, so an interrupted run is simply continued by the next.
    """
    if not await connection.fetchval("SELECT pg_try_advisory_lock($1)", _LOCK_KEY):
        return Maintenance(changed=False, busy=True)
    try:
        now = now or datetime.now(UTC)
        licence = str(await connection.fetchval("SELECT current_setting('timescaledb.license')"))
        late = await _late_hours(connection, now - timedelta(days=config.late_days))
        for hour in late[: config.max_hours]:
            await _merge(connection, hour)
        hours = await _hours(connection, config.max_hours)
        rows = 0
        for hour in hours:
            rows += await _roll(connection, hour)
        dropped = await _retain(connection, config, now)
        policies = await _compress(connection, config) if licence == "timescale" else 0
        waiting, pending = await connection.fetchrow(
            "SELECT count(DISTINCT hour) FILTER (WHERE hour < rolled_before),"
            " count(DISTINCT hour) FILTER (WHERE hour >= rolled_before)"
            " FROM rollup_log, rollup_floor"
        )
        return Maintenance(
            bool(hours or late or dropped or policies), False, licence,
            len(hours), rows, len(late[: config.max_hours]), waiting, pending, dropped, policies,
        )  # fmt: skip
    finally:
        await connection.execute("SELECT pg_advisory_unlock($1)", _LOCK_KEY)


# Hours and ranges are passed as text: PostgreSQL has more times than Python, infinity among them.


async def _hours(connection: Any, limit: int) -> list[str]:
    """Return the hours to roll up, the newest first."""
    found = await connection.fetch(
        "SELECT hour::text FROM (SELECT DISTINCT hour FROM rollup_log, rollup_floor"
        " WHERE hour >= rolled_before ORDER BY hour DESC LIMIT $1) AS newest",
        limit,
    )
    return [record["hour"] for record in found]


async def _late_hours(connection: Any, before: datetime) -> list[str]:
    """Return the hours whose other rows are gone, and that nothing came for since `before`."""
    found = await connection.fetch(
        "SELECT hour::text FROM rollup_log, rollup_floor WHERE hour < rolled_before"
        " GROUP BY hour HAVING max(noted_at) <= $1",
        before,
    )
    return [record["hour"] for record in found]


def _buckets(width: str, source: str) -> str:
    # A value so large that squares of it are no floats would fail the average of all.
    return (
        f"SELECT time_bucket('{width}', time), device_id, metric_name, count(*),"  # noqa: S608
        " coalesce(avg(value) FILTER (WHERE abs(value) <= 1e100), min(value)),"
        f" min(value), max(value) FROM {source} GROUP BY 1, 2, 3"
    )


async def _roll(connection: Any, hour: str) -> int:
    """Roll one hour up; return how many buckets are new or have new values."""
    changed = 0
    async with connection.transaction(isolation="read_committed"):
        # First off the log, then read: rows stored in between are on the log again.
        await _off_the_log(connection, hour)
        for table, width in _ROLLUPS.items():
            # Rows are only ever added, so a bucket with as many samples has the same ones.
            answer = await connection.execute(
                "WITH rows AS (SELECT * FROM device_metrics"  # noqa: S608 (constants above)
                " WHERE time >= $1::text::timestamptz"
                " AND time < $1::text::timestamptz + INTERVAL '1 hour')"
                f" INSERT INTO {table} AS old {_buckets(width, 'rows')}"
                " ON CONFLICT (device_id, metric_name, bucket) DO UPDATE SET"
                " samples = excluded.samples, average = excluded.average,"
                " minimum = excluded.minimum, maximum = excluded.maximum"
                " WHERE old.samples <> excluded.samples",
                hour,
            )
            changed += int(answer.rsplit(" ", 1)[1])
    return changed


async def _merge(connection: Any, hour: str) -> None:
    """Move the rows of an hour whose other rows are gone into its rollups."""
    merge = (
        " ON CONFLICT (device_id, metric_name, bucket) DO UPDATE SET"
        " samples = old.samples + excluded.samples,"
        " average = old.average + (excluded.average - old.average)"
        " * (excluded.samples::float8 / (old.samples + excluded.samples)),"
        " minimum = least(old.minimum, excluded.minimum),"
        " maximum = greatest(old.maximum, excluded.maximum)"
    )
    (fine, fine_width), (coarse, coarse_width) = _ROLLUPS.items()
    async with connection.transaction(isolation="read_committed"):
        await _off_the_log(connection, hour)
        await connection.execute(
            "WITH gone AS (DELETE FROM device_metrics"  # noqa: S608 (constants above)
            " WHERE time >= $1::text::timestamptz"
            " AND time < $1::text::timestamptz + INTERVAL '1 hour' RETURNING *),"
            f" fine AS (INSERT INTO {fine} AS old {_buckets(fine_width, 'gone')}{merge})"
            f" INSERT INTO {coarse} AS old {_buckets(coarse_width, 'gone')}{merge}",
            hour,
        )


async def _off_the_log(connection: Any, hour: str) -> None:
    await connection.execute("DELETE FROM rollup_log WHERE hour = $1::text::timestamptz", hour)


async def _retain(connection: Any, config: MaintenanceConfig, now: datetime) -> int:
    """Drop chunks that are old as a whole, few in a transaction; return how many."""
    dropped = 0
    for portion in await _portions(connection, "device_metrics", now, config.raw_days):
        taken = await _drop_samples(connection, portion)
        if taken is None:
            break
        dropped += taken
    for table, days in (
        ("device_metrics_5m", config.rollup_5m_days),
        ("device_metrics_1h", config.rollup_1h_days),
        *((table, config.events_days) for table in _EVENTS),
    ):
        for portion in await _portions(connection, table, now, days):
            for chunk in portion:
                dropped += await _drop(connection, table, chunk)
    return dropped


async def _portions(connection: Any, table: str, now: datetime, days: int) -> list[Any]:
    """Return the chunks that end more than `days` ago, the oldest first, some at a time."""
    chunks = await connection.fetch(
        "SELECT format('%I.%I', chunk_schema, chunk_name) AS name,"
        " range_start::text AS start, range_end::text AS end"
        " FROM timescaledb_information.chunks WHERE hypertable_name = $1 AND range_end <= $2"
        " ORDER BY range_end",
        table,
        now - timedelta(days=days),
    )
    return [chunks[start : start + _CHUNKS] for start in range(0, len(chunks), _CHUNKS)]


async def _drop_samples(connection: Any, chunks: Sequence[Any]) -> int | None:
    """Drop chunks whose samples are rolled up; None when some wait for the next run."""
    dropped = 0
    async with connection.transaction(isolation="read_committed"):
        # Nothing comes in between looking at the log and dropping.
        for chunk in chunks:
            await connection.execute(f"LOCK TABLE {chunk['name']} IN ACCESS EXCLUSIVE MODE")
        if await connection.fetchval(
            "SELECT EXISTS (SELECT FROM rollup_log, rollup_floor"
            " WHERE hour >= rolled_before AND hour < $1::text::timestamptz)",
            chunks[-1]["end"],
        ):
            return None
        await connection.execute(
            "UPDATE rollup_floor"
            " SET rolled_before = greatest(rolled_before, $1::text::timestamptz)",
            chunks[-1]["end"],
        )
        for chunk in chunks:
            late = await connection.fetchval(
                "SELECT EXISTS (SELECT FROM rollup_log WHERE hour >= $1::text::timestamptz"
                " AND hour < $2::text::timestamptz)",
                chunk["start"],
                chunk["end"],
            )
            dropped += 0 if late else await _drop(connection, "device_metrics", chunk)
    return dropped


async def _drop(connection: Any, table: str, chunk: Any) -> int:
    return len(
        await connection.fetch(
            "SELECT drop_chunks($1::text::regclass, older_than => $2::text::timestamptz,"
            " newer_than => $3::text::timestamptz)",
            table,
            chunk["end"],
            chunk["start"],
        )
    )


async def _compress(connection: Any, config: MaintenanceConfig) -> int:
    """Let TimescaleDB's own policy compress old chunks of the samples; 1 when that is new."""
    if await connection.fetchval(
        "SELECT EXISTS (SELECT FROM timescaledb_information.jobs WHERE hypertable_name ="
        " 'device_metrics' AND proc_name IN ('policy_compression', 'policy_columnstore'))"
    ):
        return 0
    async with connection.transaction():
        await connection.execute(
            "ALTER TABLE device_metrics SET (timescaledb.compress,"
            " timescaledb.compress_segmentby = 'device_id, metric_name',"
            " timescaledb.compress_orderby = 'time')"
        )
        await connection.execute(
            "SELECT add_compression_policy('device_metrics', make_interval(days => $1))",
            config.compress_after_days,
        )
    return 1


def textfile(result: Maintenance, now: datetime) -> str:
    """Return the run as metrics for node exporter's textfile collector."""
    values = {
        "last_success_timestamp_seconds": now.timestamp(),
        "pending_hours": result.pending,
        "rolled_hours": result.hours,
        "late_hours": result.late,
        "waiting_hours": result.waiting,
        "dropped_chunks": result.dropped,
    }
    lines = (
        f"# TYPE prime_spark_maintenance_{name} gauge\nprime_spark_maintenance_{name} {value}\n"
        for name, value in values.items()
    )
    return "".join(lines)

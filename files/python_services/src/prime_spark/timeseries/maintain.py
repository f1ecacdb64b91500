"""Keeps the time series in bounds: rollups, retention and, where the licence has it, compression.

The rollups are the same tables under either licence of TimescaleDB, filled here and not by its
continuous aggregates: retention has to wait until an hour is rolled up, which policies that know
nothing of each other cannot promise, and a reader finds the same names, columns and values.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import msgspec

from prime_spark.config import Config, Positive

_LOCK_KEY = 0x5052494D46
_ROLLUPS = {"device_metrics_5m": "5 minutes", "device_metrics_1h": "1 hour"}
_EVENTS = ("ai_inference_results", "api_events")

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

    def __post_init__(self) -> None:
        if not self.raw_days <= self.rollup_5m_days <= self.rollup_1h_days:
            raise ValueError("expected raw_days <= rollup_5m_days <= rollup_1h_days")
        # Compressed chunks take late rows too, but slowly.
        if self.compress_after_days < 2:
            raise ValueError("compress_after_days must be at least 2")


@dataclass(frozen=True)
class Maintenance:
    """What a run did.

    `pending` hours are left for the next run; rows of `too_late` hours came after these had been
    dropped and go without being rolled up.
    """

    changed: bool
    busy: bool = False
    licence: str = ""
    hours: int = 0
    rows: int = 0
    too_late: int = 0
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
        too_late = await _forget_too_late(connection)
        hours = await connection.fetch(
            "SELECT DISTINCT hour FROM rollup_log ORDER BY hour DESC LIMIT $1", config.max_hours
        )
        rows = 0
        for record in hours:
            rows += await _roll(connection, record["hour"])
        dropped = await _retain(connection, config, now)
        policies = await _compress(connection, config) if licence == "timescale" else 0
        pending = await connection.fetchval("SELECT count(DISTINCT hour) FROM rollup_log")
        return Maintenance(
            bool(hours or too_late or dropped or policies),
            False, licence, len(hours), rows, too_late, pending, dropped, policies,
        )  # fmt: skip
    finally:
        await connection.execute("SELECT pg_advisory_unlock($1)", _LOCK_KEY)


async def _forget_too_late(connection: Any) -> int:
    """Take hours off the log whose other rows are gone: rolled up anew they would shrink."""
    gone = await connection.fetch(
        "DELETE FROM rollup_log USING rollup_floor WHERE hour < rolled_before RETURNING hour"
    )
    return len({record["hour"] for record in gone})


async def _roll(connection: Any, hour: datetime) -> int:
    """Roll one hour up; return how many buckets are new or have new values."""
    changed = 0
    async with connection.transaction(isolation="read_committed"):
        # First off the log, then read: rows stored in between are on the log again.
        await connection.execute("DELETE FROM rollup_log WHERE hour = $1", hour)
        for table, width in _ROLLUPS.items():
            # Rows are only ever added, so a bucket with as many samples has the same ones.
            answer = await connection.execute(
                f"INSERT INTO {table} AS old"  # noqa: S608 (constants above)
                f" SELECT time_bucket('{width}', time), device_id, metric_name,"
                " count(*), avg(value), min(value), max(value) FROM device_metrics"
                " WHERE time >= $1::timestamptz AND time < $1::timestamptz + INTERVAL '1 hour'"
                " GROUP BY 1, 2, 3"
                " ON CONFLICT (device_id, metric_name, bucket) DO UPDATE SET"
                " samples = excluded.samples, average = excluded.average,"
                " minimum = excluded.minimum, maximum = excluded.maximum"
                " WHERE old.samples <> excluded.samples",
                hour,
            )
            changed += int(answer.rsplit(" ", 1)[1])
    return changed


async def _retain(connection: Any, config: MaintenanceConfig, now: datetime) -> int:
    """Drop chunks that are old as a whole; return how many."""
    dropped = 0
    raw = now - timedelta(days=config.raw_days)
    async with connection.transaction():
        if not await connection.fetchval(
            "SELECT EXISTS (SELECT FROM rollup_log WHERE hour < $1)", raw
        ):
            # An hour at the limit belongs to a chunk that stays: only whole chunks go.
            end = await connection.fetchval(
                "SELECT max(range_end) FROM timescaledb_information.chunks"
                " WHERE hypertable_name = 'device_metrics' AND range_end <= $1",
                raw,
            )
            if end is not None:
                await connection.execute(
                    "UPDATE rollup_floor SET rolled_before = greatest(rolled_before, $1)", end
                )
                dropped += await _drop(connection, "device_metrics", raw)
    for table, days in (
        ("device_metrics_5m", config.rollup_5m_days),
        ("device_metrics_1h", config.rollup_1h_days),
        *((table, config.events_days) for table in _EVENTS),
    ):
        dropped += await _drop(connection, table, now - timedelta(days=days))
    return dropped


async def _drop(connection: Any, table: str, before: datetime) -> int:
    return len(
        await connection.fetch(
            "SELECT drop_chunks($1::text::regclass, older_than => $2::timestamptz)", table, before
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
        "too_late_hours": result.too_late,
        "dropped_chunks": result.dropped,
    }
    lines = (
        f"# TYPE prime_spark_maintenance_{name} gauge\nprime_spark_maintenance_{name} {value}\n"
        for name, value in values.items()
    )
    return "".join(lines)

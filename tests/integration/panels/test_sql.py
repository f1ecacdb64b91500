"""SQL panels and exporter queries, asked of a real TimescaleDB with our schema.

Needs root and images.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import asyncpg
import jinja2
import pytest
import yaml
from prime_spark.timeseries import migrate
from prime_spark.timeseries.maintain import MaintenanceConfig, maintain

from tests.integration.panels.grafana import Range, sql
from tests.integration.panels.queries import ROOT, Panel, panels
from tests.integration.servers import PostgresServer, postgres_server

END = datetime.now(UTC)
HOSTS = ["control-pc-1", "primecore1"]
CHOICES = {"host": HOSTS}
EXPORTER = ROOT / "roles/exporters/templates/stack/config/postgres-exporter/queries.yml.j2"
STRANGERS = 1200
# Days ago with a day of samples each: in all tables, in both rollups, in the hourly one alone.
DAYS = (0, 20, 60, 300)
LEVEL = 40.0
PANELS = [
    panel
    for panel in panels()
    if any("rawSql" in target for target in panel.targets)
]  # fmt: skip


async def fill(dsn: str) -> None:
    """An hour of a small fleet, and before it some days, rolled up as in production."""
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute("CREATE ROLE prime_spark_reader")  # whose rights Grafana has
        await migrate.migrate(connection, migrate.packaged_migrations())
        times = [END - timedelta(seconds=30 * n) for n in range(120)]
        await connection.executemany(
            "INSERT INTO device_metrics VALUES ($1, $2, $3, $4)",
            [
                (time, device, metric, float(n % 50))
                for n, time in enumerate(times)
                for device in HOSTS
                for metric in ("cpu_percent", "memory_percent")
            ],
        )
        await connection.execute(
            "INSERT INTO device_metrics SELECT $1::timestamptz - INTERVAL '2 hours'"
            " - make_interval(days => day, secs => 5 * n), device, metric, $2"
            " FROM unnest($3::int[]) AS day, generate_series(1, 17280) AS n,"
            " unnest($4::text[]) AS device, unnest($5::text[]) AS metric",
            END,
            LEVEL,
            DAYS,
            HOSTS,
            ["cpu_percent", "memory_percent"],
        )
        done = await maintain(connection, MaintenanceConfig())
        assert (done.pending, done.dropped > 0) == (0, True)
        await connection.execute(
            "INSERT INTO device_metrics"
            " SELECT now(), 'made-up-' || n, 'cpu_percent', 1"
            " FROM generate_series(1, $1::int) AS n",
            STRANGERS,
        )
        await connection.executemany(
            "INSERT INTO ai_inference_results VALUES ($1, $2, 'm', 10, 20, 30, 40, $3, $4)",
            [
                (time, uuid4(), 100.0 + n, source)
                for n, time in enumerate(times)
                for source in ("edge", "cloud")
            ],
        )
        await connection.executemany(
            "INSERT INTO api_events VALUES ($1, $2, 'GET', '/x', 200, $3)",
            [(time, uuid4(), float(n)) for n, time in enumerate(times)],
        )
    finally:
        await connection.close()


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with postgres_server() as running:
        asyncio.run(fill(running.dsn))
        yield running


DEVICE_PANELS = [
    dataclasses.replace(panel, targets=targets)
    for panel in PANELS
    if (targets := tuple(t for t in panel.targets if "FROM device_metrics" in t["rawSql"]))
]
by_title = pytest.mark.parametrize(
    "panel", DEVICE_PANELS, ids=lambda panel: f"{panel.dashboard}: {panel.title}"
)


def no_prometheus(*_: Any) -> list[float]:
    raise AssertionError("this panel asks the database")


@by_title
@pytest.mark.parametrize("days", DAYS)
@pytest.mark.parametrize("hours", [3, 30 * 24])
def test_samples_are_shown_wherever_they_are_kept(
    server: PostgresServer, panel: Panel, days: int, hours: int
) -> None:
    """Whether a point is a second or an hour wide, from the table that still has it."""
    end = END.timestamp() - 2 * 3600 - days * 86400
    span = Range(end - hours * 3600, end)

    def database(query: str) -> list[dict[str, Any]]:
        return ask(server, query)

    (values,) = panel.ask(no_prometheus, database, span, 15, CHOICES)
    if panel.title == "Rows by table":
        there = sum(days <= other < days + hours / 24 for other in DAYS)
        taken = there * min(hours, 24) * 3600 / 5 * len(HOSTS) * 2
        assert sum(values) == pytest.approx(taken, rel=0.35), "buckets at the edges"
    else:
        assert set(values) == {LEVEL}


@by_title
def test_a_month_is_not_read_sample_by_sample(server: PostgresServer, panel: Panel) -> None:
    span = Range(END.timestamp() - 30 * 86400, END.timestamp())
    (target,) = panel.targets
    (plan,) = ask(server, f"EXPLAIN (ANALYZE, FORMAT JSON) {sql(target['rawSql'], span, CHOICES)}")
    rows = rows_read(plan["Plan"])
    assert rows < 20_000, f"{rows} rows read"


def rows_read(node: dict[str, Any]) -> float:
    """Rows that a plan's scans returned or threw away."""
    found = sum(rows_read(child) for child in node.get("Plans", []))
    if "Relation Name" in node:
        rows = node["Actual Rows"] + node.get("Rows Removed by Filter", 0)
        found += rows * node["Actual Loops"]
    return found


def ask(server: PostgresServer, query: str) -> list[dict[str, Any]]:
    async def go() -> Any:
        connection = await asyncpg.connect(server.dsn)
        try:
            await connection.execute("SET ROLE prime_spark_reader")
            if query.startswith("EXPLAIN"):
                return await connection.fetchval(query)
            wrapped = f"SELECT coalesce(json_agg(q), '[]') FROM ({query}) q"
            return await connection.fetchval(wrapped)
        finally:
            await connection.close()

    return list(json.loads(asyncio.run(go())))


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: f"{panel.dashboard}: {panel.title}")
def test_panel(server: PostgresServer, panel: Any) -> None:
    span = Range(END.timestamp() - 3600, END.timestamp() + 1)

    def database(query: str) -> list[dict[str, Any]]:
        return ask(server, query)

    found = panel.ask(no_prometheus, database, span, 15, CHOICES)
    assert all(found), found


@pytest.mark.parametrize("expected", [HOSTS, ["away"], []])
def test_made_up_devices_are_one_number(server: PostgresServer, expected: list[str]) -> None:
    """A device id costs Prometheus a series, and the user `telemetry` can make up any number."""
    template = jinja2.Template(EXPORTER.read_text(), trim_blocks=True, lstrip_blocks=True)
    queries = {
        name: ask(server, entry["query"])
        for name, entry in yaml.safe_load(template.render(__exporters_devices=expected)).items()
    }
    newest = queries["prime_spark_device_newest_sample"]
    assert sorted(row["device_id"] for row in newest) == [d for d in expected if d in HOSTS]
    assert all(abs(row["timestamp_seconds"] - END.timestamp()) < 1 for row in newest)
    assert queries["prime_spark_unexpected"] == [{"devices": 1000}], "a number, and bounded"

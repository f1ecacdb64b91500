"""Every SQL panel returns values from a real TimescaleDB with our schema; needs root and images."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from prime_spark.timeseries import migrate

from lab.servers import PostgresServer, postgres_server
from tests.panels.grafana import Range
from tests.panels.queries import panels

END = datetime.now(UTC)
HOSTS = ["control-pc-1", "primecore1"]
PANELS = [
    panel
    for panel in panels()
    if any("rawSql" in target for target in panel.targets)
]  # fmt: skip


async def fill(dsn: str) -> None:
    """An hour of a small fleet."""
    connection = await asyncpg.connect(dsn)
    try:
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


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: f"{panel.dashboard}: {panel.title}")
def test_panel(server: PostgresServer, panel: Any) -> None:
    span = Range(END.timestamp() - 3600, END.timestamp() + 1)

    def database(sql: str) -> list[dict[str, Any]]:
        async def ask() -> Any:
            connection = await asyncpg.connect(server.dsn)
            try:
                wrapped = f"SELECT coalesce(json_agg(q), '[]') FROM ({sql}) q"
                return await connection.fetchval(wrapped)
            finally:
                await connection.close()

        return list(json.loads(asyncio.run(ask())))

    def prometheus(*_: Any) -> list[float]:
        raise AssertionError("this panel asks the database")

    found = panel.ask(prometheus, database, span, 15, {"host": HOSTS})
    assert all(found), found

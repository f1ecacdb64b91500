"""PostgreSQL answers over SCRAM, TimescaleDB works in it, and commits survive a kill."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import asyncpg
import pytest

from tests.integration.images.postgres import fetch
from tests.integration.servers import PostgresServer, postgres_server


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with postgres_server() as running:
        yield running


def test_hypertable_survives_a_kill(server: PostgresServer) -> None:
    rows = fetch(
        server.dsn,
        "CREATE EXTENSION timescaledb",
        "CREATE TABLE reading (time timestamptz NOT NULL, value float8)",
        "SELECT create_hypertable('reading', by_range('time', interval '1 day'))",
        "INSERT INTO reading SELECT t, 1 FROM generate_series("
        "timestamptz '2026-01-01', '2026-01-03 23:00', interval '1 hour') AS t",
        "SELECT count(*) FROM reading",
    )
    chunks = "SELECT count(*) FROM show_chunks('reading')"
    assert (rows, fetch(server.dsn, chunks)) == (72, 3)
    server.kill()
    server.start()
    assert fetch(server.dsn, "SELECT count(*) FROM reading") == 72
    server.stop()
    server.start()
    assert fetch(server.dsn, chunks) == 3


def test_is_the_apache_build(server: PostgresServer) -> None:
    assert fetch(server.dsn, "SHOW timescaledb.license") == "apache"


def test_runs_without_the_jit_compiler(server: PostgresServer) -> None:
    assert (
        fetch(server.dsn, "SET jit = on", "SET jit_above_cost = 0", "SELECT pg_jit_available()")
        is False
    )
    assert (
        fetch(
            server.dsn,
            "SET jit_above_cost = 0",
            "SELECT sum(n * 2) FROM generate_series(1, 1000) AS n",
        )
        == 1001000
    )


def test_refuses_a_wrong_password(server: PostgresServer) -> None:
    async def go() -> None:
        await asyncpg.connect(server.dsn, password="wrong")

    with pytest.raises(asyncpg.InvalidPasswordError):
        asyncio.run(go())


def test_settings_reach_the_server() -> None:
    with postgres_server({"max_connections": "17"}) as server:
        assert fetch(server.dsn, "SHOW max_connections") == "17"

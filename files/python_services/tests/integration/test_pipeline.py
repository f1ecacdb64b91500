"""The pipeline between a real Redis and a real TimescaleDB."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import redis as redis_client
from tests.integration.servers import PostgresServer, RedisServer

from prime_spark.config import decode_config
from prime_spark.pipeline import Settings, sync
from support import database_config, sql

NOW = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)

Hash = Callable[..., None]


@pytest.fixture
def put(redis: RedisServer) -> Iterator[Hash]:
    """Writes the hash of a device as the collector does."""
    with redis_client.Redis.from_url(redis.url) as client:
        client.flushall()
        # The rights that the role redis gives to this user, and no more.
        client.execute_command(
            *("ACL", "SETUSER", "pipeline", "reset", "on", ">redis secret"),
            *("%R~metrics:*", "+ping", "+scan", "+hgetall"),
        )

        def write(device: str, time: str = NOW.isoformat(), **values: str) -> None:
            client.hset(f"metrics:{device}", mapping={"time": time, **values})

        yield write
        client.flushall()


@pytest.fixture
def settings(
    redis: RedisServer,
    postgres: PostgresServer,
    pipeline_database: str,
    put: Hash,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Settings:
    folder = tmp_path / "pipeline-credentials"
    folder.mkdir()
    (folder / "redis_password").write_text("redis secret")
    (folder / "database_password").write_text("pipeline secret")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(folder))
    block = database_config(postgres, pipeline_database, "prime_spark_pipeline")
    return decode_config(
        f"""{{"redis": {{"host": "{redis.host}", "port": {redis.port},
            "username": "pipeline", "credential": "redis_password"}},
            "database": {{"host": "{block["host"]}", "port": {block["port"]},
            "name": "{pipeline_database}", "username": "prime_spark_pipeline",
            "credential": "database_password"}}}}""",
        Settings,
    )


def rows(postgres: PostgresServer, database: str) -> list[Any]:
    return [
        tuple(row)
        for row in sql(
            postgres,
            database,
            "SELECT device_id, metric_name, time, value FROM device_metrics ORDER BY 1, 2, 3",
        )
    ]


def test_samples_become_rows_once(
    postgres: PostgresServer, pipeline_database: str, settings: Settings, put: Hash
) -> None:
    put("host-1", cpu="12.5", memory="40.0", disk="71.25")
    put("host-2", cpu="0.0", memory="100.0")
    first = sync(settings, NOW)
    assert (first.devices, first.values, first.inserted, first.dropped) == (2, 5, 5, {})
    stored = rows(postgres, pipeline_database)
    assert stored == [
        ("host-1", "cpu_percent", NOW, 12.5),
        ("host-1", "disk_percent", NOW, 71.25),
        ("host-1", "memory_percent", NOW, 40.0),
        ("host-2", "cpu_percent", NOW, 0.0),
        ("host-2", "memory_percent", NOW, 100.0),
    ]

    # The time is the sample's: a repeated run, however late, adds no row.
    again = sync(settings, NOW + timedelta(minutes=15))
    assert (again.inserted, again.duplicates) == (0, 5)
    assert rows(postgres, pipeline_database) == stored

    put("host-1", (NOW + timedelta(seconds=30)).isoformat(), cpu="13.5")
    assert sync(settings, NOW).inserted == 3


def test_bad_values_are_dropped_and_counted(
    postgres: PostgresServer, pipeline_database: str, settings: Settings, put: Hash
) -> None:
    put("bad-1", cpu="-0.1", memory="100.5", disk="50")
    put("bad-2", cpu="nan", memory="inf", disk="many")
    put("bad-3", "yesterday", cpu="1", memory="2")
    put("bad-4", "2026-05-04T12:00:00", cpu="1")  # whose noon?
    put("bad-5", (NOW + timedelta(hours=2)).isoformat(), cpu="1")
    put("bad-6", "0001-01-01T00:00:00+00:00", cpu="1")  # a clock that was never set
    put("bad-7", (NOW - timedelta(days=181)).isoformat(), cpu="1", memory="2")
    put("no such\nname", cpu="1")
    # What Python takes for a number, and nobody else.
    put("bad-8", cpu="1_0", memory="\N{ARABIC-INDIC DIGIT ONE}", disk=" 1")
    summary = sync(settings, NOW)
    assert summary.dropped == {
        "out of range": 2,
        "not a number": 6,
        "time": 3,
        "future": 1,
        "past": 3,
        "device name": 1,
    }
    assert (summary.values, summary.inserted) == (17, 1)
    assert rows(postgres, pipeline_database) == [("bad-1", "disk_percent", NOW, 50.0)]


@pytest.mark.usefixtures("put")
def test_nothing_there_is_no_error(settings: Settings) -> None:
    summary = sync(settings, NOW)
    assert (summary.devices, summary.inserted) == (0, 0)


def test_failures_are_raised(
    redis: RedisServer, postgres: PostgresServer, settings: Settings, put: Hash
) -> None:
    """Nothing is swallowed: retrying is the scheduler's part."""
    put("host-1", cpu="1")
    postgres.stop()
    try:
        with pytest.raises(OSError, match="Connect"):
            sync(settings, NOW)
    finally:
        postgres.start()
    assert sync(settings, NOW).inserted == 1
    redis.stop()
    try:
        with pytest.raises(redis_client.ConnectionError):
            sync(settings, NOW)
    finally:
        redis.start()

"""Ingest while the database's disk is full: told by its name, and nothing is lost or given up."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tests.integration.servers import KafkaServer, PostgresServer, postgres_server

from ingest_support import create_pipeline, send_samples
from lab import image_builds as images
from prime_spark.events import Telemetry, encode
from support import eventually, producer, running, sql

DISK = "/run/small"
DISK_BYTES = 16 * 1024 * 1024


@pytest.fixture
def postgres() -> Iterator[PostgresServer]:
    """A server of its own: without its disk it cannot start again."""
    with postgres_server() as server:
        yield server


@pytest.fixture
def disk(postgres: PostgresServer) -> Path:
    """A small disk that the server, and only it, sees; it goes with the server."""
    place = f"{images.root_path(postgres.image)}{DISK}"
    options = f"size={DISK_BYTES},uid={postgres.uid},gid={postgres.uid},mode=0700"
    script = f'mkdir -p "$1" && mount -t tmpfs -o {options} tmpfs "$1"'
    enter = ["nsenter", f"--target={postgres.pid}", "--mount"]
    subprocess.run([*enter, "sh", "-euc", script, "sh", place], check=True)
    return Path(f"/proc/{postgres.pid}/root{DISK}")


def fill(disk: Path) -> None:
    with suppress(OSError), (disk / "filler").open("ab", buffering=0) as file:
        for size in (65536, 1):
            with suppress(OSError):
                while file.write(b"x" * size):
                    pass


def test_a_full_disk_is_told_and_waited_for(
    kafka: KafkaServer, postgres: PostgresServer, disk: Path, tmp_path: Path
) -> None:
    path = create_pipeline(kafka, postgres, tmp_path)
    sql(postgres, "postgres", f"CREATE TABLESPACE small LOCATION '{DISK}'")
    sql(postgres, path.database, "SELECT attach_tablespace('small', 'device_metrics')")
    # One by one: a message that is blamed for the failure is not divided any more but given up.
    path.command.config["batch"] = {"max_records": 1, "max_wait_ms": 10}
    with running(path.command) as ingest, producer(kafka) as client:
        # Of today, as ingest's probe of the database: its page has room when the disk is full.
        today = Telemetry(time=datetime.now(UTC), device_id="host-1", metrics={"cpu_percent": 1.0})
        client.send(path.telemetry, encode(today), key=b"host-1")
        send_samples(client, path.telemetry, range(200))
        eventually(lambda: path.count() == 401, what="stored")
        fill(disk)
        send_samples(client, path.telemetry, range(200, 600))
        eventually(lambda: not ingest.healthy(), what="told")
        database = ingest.health()["components"]["database"]
        assert "53100" in database["detail"]
        assert "No space left" in database["detail"]
        retries = "prime_spark_ingest_retries_total"
        eventually(lambda: ingest.metric(retries) >= 4, what="tried again and again")
        (disk / "filler").unlink()
        eventually(lambda: path.count() == 1201, 60, "all stored")
        eventually(ingest.healthy)
        assert ingest.terminate() == 0
    assert path.dead_letters() == []

"""Input meant to stop ingest: whatever one client sends, what others send is stored."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.record.util import calc_crc32c
from tests.integration.servers import KafkaServer, PostgresServer

from ingest_support import Pipeline, create_pipeline
from prime_spark.config import DatabaseConfig
from prime_spark.events import ApiEvent, Telemetry, encode, new_event_id
from prime_spark.timeseries.connection import connect
from prime_spark.timeseries.rows import encode_rows
from prime_spark.timeseries.writer import Writer
from support import eventually, producer, running

SECONDS = 10.0  # after which a good message has to be stored


@pytest.fixture
def path(kafka: KafkaServer, postgres: PostgresServer, tmp_path: Path) -> Pipeline:
    """A pipeline with the limits of a real ingest."""
    pipeline = create_pipeline(kafka, postgres, tmp_path)
    pipeline.command.config.pop("max_age_days", None)
    pipeline.command.config["batch"] = {"max_records": 2000, "max_wait_ms": 500}
    return pipeline


def sample(moment: datetime, device: str = "host-1", value: float = 1.0) -> bytes:
    return encode(Telemetry(time=moment, device_id=device, metrics={"cpu_percent": value}))


def stored(path: Pipeline, device: str) -> int:
    query = f"SELECT count(*) AS n FROM device_metrics WHERE device_id = '{device}'"
    number: int = path.rows(query)[0]["n"]
    return number


def test_a_sample_a_day_since_1990_stops_nobody(path: Pipeline) -> None:
    start = datetime(1990, 1, 1, tzinfo=UTC)
    with running(path.command) as ingest:
        eventually(ingest.healthy)
        with producer(path.kafka) as client:
            for day in range(2000):
                client.send(path.telemetry, sample(start + timedelta(days=day), "old"))
            client.send(path.telemetry, sample(datetime.now(UTC), "sentinel"))
        eventually(lambda: stored(path, "sentinel") == 1, SECONDS, "the sentinel")
        dead = "prime_spark_ingest_dead_letters_total"
        eventually(lambda: ingest.metric(dead) == 2000, SECONDS, "dead letters")
    assert stored(path, "old") == 0
    reasons = {headers["reason"] for headers, _ in path.dead_letters()}
    assert "time 1990-01-01T00:00:00+00:00 is more than 180 days ago" in reasons


def test_what_the_server_fails_at_is_found_and_costs_nobody(path: Pipeline) -> None:
    """The server fails at a message, though nothing of it is wrong by any rule."""
    path.rows(
        "CREATE FUNCTION stumble() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " IF EXISTS (SELECT FROM stored WHERE device_id = 'guilty') THEN"
        " RAISE EXCEPTION 'out of shared memory' USING ERRCODE = '53200'; END IF;"
        " RETURN NULL; END $$"
    )
    path.rows(
        "CREATE TRIGGER stumble AFTER INSERT ON device_metrics REFERENCING NEW TABLE AS stored"
        " FOR EACH STATEMENT EXECUTE FUNCTION stumble()"
    )
    now = datetime.now(UTC)
    with running(path.command) as ingest:
        eventually(ingest.healthy)
        with producer(path.kafka) as client:
            for number in range(500):
                moment = now - timedelta(milliseconds=number)
                client.send(path.telemetry, sample(moment, f"host-{number % 5}"), partition=0)
                if number == 250:
                    client.send(path.telemetry, sample(moment, "guilty"), partition=0)
        eventually(lambda: path.count() == 500, SECONDS, "all others")
        eventually(lambda: len(path.dead_letters()) == 1, 20, "the guilty one")
        eventually(ingest.healthy)
    ((headers, value),) = path.dead_letters()
    assert b'"guilty"' in value
    assert headers["reason"] == "53200: out of shared memory (repeatedly, alone)"


def login(path: Pipeline) -> dict[str, str]:
    return {
        "bootstrap_servers": path.kafka.bootstrap_servers,
        "security_protocol": "SASL_PLAINTEXT",
        "sasl_mechanism": "SCRAM-SHA-512",
        "sasl_plain_username": path.kafka.admin_username,
        "sasl_plain_password": path.kafka.admin_password,
    }


def database_login(path: Pipeline) -> DatabaseConfig:
    return DatabaseConfig(
        host=path.postgres.host,
        port=path.postgres.port,
        name=path.database,
        username=path.postgres.username,
        credential="database_password",
    )


def send_batch(path: Pipeline, fill: Callable[[Any], None]) -> None:
    """Send what `fill` puts into a batch, and a sentinel behind it in the same partition."""

    async def send() -> None:
        async with AIOKafkaProducer(**login(path)) as client:
            batch = client.create_batch()
            fill(batch)
            await (await client.send_batch(batch, path.telemetry, partition=0))
            sentinel = sample(datetime.now(UTC), "sentinel")
            await client.send_and_wait(path.telemetry, sentinel, partition=0)

    asyncio.run(send())


def test_a_message_with_neither_key_nor_value_stops_nobody(path: Pipeline) -> None:
    """Clients' own checks keep people from sending one; the protocol does not."""
    with running(path.command) as ingest:
        eventually(ingest.healthy)
        send_batch(path, lambda batch: batch.append(key=None, value=None, timestamp=None))
        eventually(lambda: stored(path, "sentinel") == 1, SECONDS, "the sentinel")
        eventually(lambda: len(path.dead_letters()) == 1, 20, "the dead letter")
        assert ingest.terminate() == 0
    ((headers, value),) = path.dead_letters()
    assert (headers["reason"], value) == ("no value (a tombstone)", b"")


def test_a_header_that_is_no_text_stops_nobody(path: Pipeline) -> None:
    """The protocol says that a header's name is UTF-8; the broker does not look."""

    def fill(batch: Any) -> None:
        batch.append(
            key=b"k", value=sample(datetime.now(UTC), "guilty"), timestamp=None,
            headers=[("name", b"")],
        )  # fmt: skip
        data = bytearray(batch._build()).replace(b"name", b"\xff\xfe\xfd\xfc")
        data[17:21] = calc_crc32c(bytes(data[21:])).to_bytes(4, "big")
        batch._buffer = data

    with running(path.command) as ingest:
        eventually(ingest.healthy)
        send_batch(path, fill)
        eventually(lambda: stored(path, "sentinel") == 1, SECONDS, "the sentinel")
        assert ingest.terminate() == 0
    assert stored(path, "guilty") == 1  # of nothing: a header says nothing here


def test_a_batch_that_swells_stops_nobody(path: Pipeline) -> None:
    """A few kilobytes that are 128 MB once unpacked, of which the broker keeps none."""
    compressions = ("gzip", "lz4", "zstd")

    async def send() -> None:
        for compression in compressions:
            async with AIOKafkaProducer(**login(path), compression_type=compression) as client:
                batch = client.create_batch()
                batch.append(key=b"k", value=bytes(128 * 1024 * 1024), timestamp=None)
                await (await client.send_batch(batch, path.telemetry, partition=0))
        async with AIOKafkaProducer(**login(path)) as client:
            sentinel = sample(datetime.now(UTC), "sentinel")
            await client.send_and_wait(path.telemetry, sentinel, partition=0)

    with running(path.command) as ingest:
        eventually(ingest.healthy)
        assert ingest.process is not None
        status = Path(f"/proc/{ingest.process.pid}/status")
        before = peak_megabytes(status)
        asyncio.run(send())
        eventually(lambda: stored(path, "sentinel") == 1, SECONDS, "the sentinel")
        eventually(lambda: len(path.dead_letters()) == 3, 20, "the dead letters")
        assert peak_megabytes(status) - before < 64
        assert ingest.terminate() == 0
    reasons = [headers["reason"] for headers, _ in path.dead_letters()]
    assert reasons == ["a batch of more than 16 MiB once unpacked"] * 3


def peak_megabytes(status: Path) -> int:
    (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) // 1024


def test_what_a_sender_took_back_is_not_stored(path: Pipeline) -> None:
    async def transactions() -> None:
        client = AIOKafkaProducer(**login(path), transactional_id=f"{path.prefix}-transactions")
        await client.start()
        try:
            for device, end in (
                ("aborted", client.abort_transaction),
                ("committed", client.commit_transaction),
            ):
                await client.begin_transaction()
                await client.send_and_wait(path.telemetry, sample(datetime.now(UTC), device))
                await end()
        finally:
            await client.stop()

    with running(path.command) as ingest:
        eventually(ingest.healthy)
        asyncio.run(transactions())
        eventually(lambda: stored(path, "committed") == 1, SECONDS, "what was committed")
        # It came before the other.
        assert stored(path, "aborted") == 0


def test_a_lost_host_keeps_its_locks_for_a_minute(path: Pipeline) -> None:
    asyncio.run(look_at_a_session(path))


async def look_at_a_session(path: Pipeline) -> None:
    connection = await connect(database_login(path), "test", path.postgres.password)
    try:
        names = ("idle_in_transaction_session_timeout", "tcp_keepalives_idle", "tcp_user_timeout")
        found = {name: await connection.fetchval(f"SHOW {name}") for name in names}
        assert found == dict(zip(names, ("1min", "30", "60000"), strict=True))
    finally:
        await connection.close()


def test_tables_are_written_in_one_order(path: Pipeline) -> None:
    asyncio.run(two_writers(path))


async def two_writers(path: Pipeline) -> None:
    """One has the row of the first table, then that of the second; the batch has them reversed."""
    database = database_login(path)
    now, identity = datetime.now(UTC), new_event_id()
    request = ApiEvent(
        time=now, event_id=identity, method="GET", endpoint="/", status=200, duration_ms=1.0
    )
    device = Telemetry(time=now, device_id="host-1", metrics={"cpu_percent": 1.0})
    folder = path.command.folder / "owner"
    folder.mkdir()
    (folder / "database_password").write_text(path.postgres.password)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CREDENTIALS_DIRECTORY", str(folder))
        writer = Writer(database, "batch")
        other, looking = await connect(database, "other"), await connect(database, "looking")
        try:
            async with other.transaction():
                await other.execute(
                    "INSERT INTO device_metrics VALUES ($1, 'host-1', 'cpu_percent', 1)", now
                )
                batch = asyncio.create_task(
                    writer.write([encode_rows(request), encode_rows(device)])
                )
                async with asyncio.timeout(SECONDS):
                    while not await looking.fetchval(
                        "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)"
                    ):
                        await asyncio.sleep(0.01)
                await other.execute(
                    "INSERT INTO api_events VALUES ($1, $2, 'GET', '/', 200, 1)", now, identity
                )
            assert (await batch).rows == {"device_metrics": 0, "api_events": 0}
        finally:
            await writer.discard()
            await other.close()
            await looking.close()

"""Whatever the user telemetry sends: what is good is stored soon, everything else is accounted for.

Airflow's task and the exporters go on meanwhile, retention and rollups after it.

20,000 messages, 200,000 with PRIME_SPARK_FULL=1. A failure prints the seed; PRIME_SPARK_SEED takes
it back.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import random
import sys
import time
from collections import defaultdict
from collections.abc import Mapping
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.errors import TopicAuthorizationFailedError
from fuzz_readers import SECRET as READERS_SECRET
from fuzz_readers import Readers, create_reader_roles, exported, kafka_exporter
from redis import Redis
from tests.integration.servers import KafkaServer, PostgresServer, RedisServer

from ingest_fuzz import COMPRESSIONS, Generator, Message
from ingest_support import Pipeline, create_pipeline
from support import Command, Daemon, database_config, eventually, read_all, running

MESSAGES = 200_000 if os.environ.get("PRIME_SPARK_FULL") == "1" else 20_000
# What the test may take: it is an end to one that hangs, and no bound on speed.
TEST_SECONDS = max(600, MESSAGES / 50)
SENTINELS = 1000
# So many at a time, before its sentinels are waited for.
WAVE = 400
# A sentinel is stored within 10 s of its send; a busy machine takes its time.
SECONDS = 30.0
DRAIN_SECONDS = 120.0
MAINTENANCE_SECONDS = MESSAGES / 150
EXPORTER_FAILURES = "prime_spark_kafka_exporter_failures_total"

Place = tuple[int, int]


# Each wait has its own deadline; this one only ends a test that hangs.
@pytest.mark.timeout(TEST_SECONDS)
def test_whatever_is_sent_is_stored_or_dead_and_stops_nobody(
    kafka: KafkaServer,
    postgres: PostgresServer,
    redis: RedisServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seed = int(os.environ.get("PRIME_SPARK_SEED") or random.randrange(2**32))
    sys.stdout.write(f"PRIME_SPARK_SEED={seed}\n")  # shown when the test fails
    create_reader_roles(postgres)
    path = create_pipeline(kafka, postgres, tmp_path)
    path.command.config.pop("max_age_days", None)
    path.command.config["batch"] = {"max_records": 2000, "max_wait_ms": 500}
    generator = Generator(seed, datetime.now(UTC), timedelta(seconds=TEST_SECONDS))
    with Redis.from_url(redis.url) as administrator:
        administrator.flushall()
    (tmp_path / "readers_password").write_text(READERS_SECRET)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    readers = Readers(path, redis, tmp_path, seed)
    with (
        running(path.command) as ingest,
        running(kafka_exporter(path, tmp_path / "exporter")) as exporter,
    ):
        eventually(ingest.healthy)
        eventually(exporter.healthy)
        failures = exporter.metric(EXPORTER_FAILURES)
        assert ingest.process is not None
        process = ingest.process.pid
        sent = asyncio.run(send(path, generator, seed, readers))
        assert len(sent) > MESSAGES * 0.9  # some are taken back
        eventually(lambda: ingest.metric("prime_spark_ingest_lag") == 0, DRAIN_SECONDS, "lag")
        eventually(ingest.healthy)
        assert (ingest.process.pid, ingest.process.poll()) == (process, None)
        check_exporter(exporter, path, sent)
        assert exporter.metric(EXPORTER_FAILURES) == failures
        assert ingest.terminate() == 0
    dead = dead_places(path, sent)
    check_fates(sent, dead)
    stored = {place: message for place, message in sent.items() if place not in dead}
    check_rows(path, stored)
    check_maintenance(path, tmp_path)


# -- sending ------------------------------------------------------------------------------------


async def send(
    path: Pipeline, generator: Generator, seed: int, readers: Readers
) -> dict[Place, Message]:
    """Send everything, in waves; return what Kafka took and its sender did not take back."""
    source = random.Random(seed + 1)
    login = {
        "bootstrap_servers": path.kafka.bootstrap_servers,
        "security_protocol": "SASL_PLAINTEXT",
        "sasl_mechanism": "SCRAM-SHA-512",
        "sasl_plain_username": "telemetry",
        "sasl_plain_password": "telemetry secret",
    }
    sent: dict[Place, Message] = {}
    async with AsyncExitStack() as stack:
        database = await asyncpg.connect(path.postgres.dsn, database=path.database)
        stack.push_async_callback(database.close)
        producers = {
            compression: await stack.enter_async_context(
                AIOKafkaProducer(**login, compression_type=compression, linger_ms=5)
            )
            for compression in COMPRESSIONS
        }
        transactions = await stack.enter_async_context(
            AIOKafkaProducer(**login, transactional_id=f"{path.prefix}-transactions")
        )
        for topic in (f"{path.prefix}.api", f"{path.prefix}.dlq"):
            try:
                await producers[None].send_and_wait(topic, b"{}")
            except TopicAuthorizationFailedError:
                continue
            raise AssertionError(f"telemetry may write to {topic}")
        waves = MESSAGES // WAVE
        for wave in range(waves):
            reading = asyncio.create_task(
                read_beside(readers, sent, (wave + 1) % (waves // 3) == 0)
            )
            messages = [generator.message() for _ in range(WAVE)]
            messages += [generator.sentinel() for _ in range(SENTINELS // waves)]
            source.shuffle(messages)
            at = source.randrange(len(messages) - 40)
            taken = messages[at : at + 40]
            messages[at : at + 40] = []
            away = asyncio.create_task(
                transaction(path, transactions, taken, source.random() < 0.5)
            )
            tasks = [put(path, producers[message.compression], message) for message in messages]
            done = await asyncio.gather(*tasks)
            sent |= dict(done) | await away
            await until_stored(database, sent)
            await reading
    return sent


async def read_beside(readers: Readers, sent: Mapping[Place, Message], now: bool) -> None:
    """Have the readers do their work, if it is time to."""
    if now:
        sentinels = {
            message.device: message.time
            for message in sent.values()
            if message.device.startswith("sentinel-") and message.time is not None
        }
        await asyncio.to_thread(readers.look, sentinels)


async def put(path: Pipeline, client: Any, message: Message) -> tuple[Place, Message]:
    if message.value is None and message.key is None:  # which `send` refuses, and Kafka does not
        batch = client.create_batch()
        batch.append(key=None, value=None, timestamp=None)
        future = await client.send_batch(batch, path.telemetry, partition=0)
    else:
        future = await client.send(
            path.telemetry,
            message.value,
            key=message.key,
            headers=message.headers,
            timestamp_ms=message.timestamp_ms,
        )
    record = await future
    return (record.partition, record.offset), message


async def transaction(
    path: Pipeline, client: Any, messages: list[Message], committed: bool
) -> dict[Place, Message]:
    """Send `messages` in a transaction; return them when it is committed."""
    await client.begin_transaction()
    done = [await put(path, client, message) for message in messages]
    if committed:
        await client.commit_transaction()
        return dict(done)
    await client.abort_transaction()
    return {}


async def until_stored(database: Any, sent: Mapping[Place, Message]) -> None:
    """Wait until all sentinels are stored."""
    wanted = sum(message.device.startswith("sentinel-") for message in sent.values())
    deadline = time.monotonic() + SECONDS
    while True:
        found = await database.fetchval(
            "SELECT count(*) FROM device_metrics WHERE time > now() - INTERVAL '2 hours'"
            " AND device_id LIKE 'sentinel-%'"
        )
        if found == wanted:
            return
        assert time.monotonic() < deadline, f"{found} of {wanted} sentinels after {SECONDS:g} s"
        await asyncio.sleep(0.1)


# -- what has become of it ----------------------------------------------------------------------


def dead_places(path: Pipeline, sent: Mapping[Place, Message]) -> dict[Place, str]:
    """Return the reason of each message that is a dead letter, with the bytes that were sent."""
    dead: dict[Place, str] = {}
    for record in read_all(path.kafka, f"{path.prefix}.dlq", 1):
        headers = {name: value.decode() for name, value in record.headers}
        place = int(headers["partition"]), int(headers["offset"])
        assert headers["topic"] == path.telemetry
        assert place in sent, f"{place} was taken back, or never sent: {headers['reason']}"
        value, key = sent[place].value, sent[place].key
        assert (record.value, record.key) == (b"" if value is key is None else value, key), place
        dead[place] = headers["reason"]
    return dead


def check_fates(sent: Mapping[Place, Message], dead: Mapping[Place, str]) -> None:
    wrong = [
        f"{message.fate}, but {dead.get(place, 'not dead')}: {(message.value or b'')[:300]!r}"
        for place, message in sent.items()
        if message.fate is not None and (message.fate == "dead") != (place in dead)
    ]
    assert not wrong, "\n".join(wrong[:20])


def check_exporter(exporter: Daemon, path: Pipeline, sent: Mapping[Place, Message]) -> None:
    """It tells how far ingest has got: behind everything that was not taken back."""
    ends: dict[int, float] = defaultdict(float)
    for partition, offset in sent:
        ends[partition] = max(ends[partition], offset + 1.0)

    def told() -> bool:
        return exported(exporter, "kafka_consumergroup_current_offset", path) == ends

    eventually(told, what="the exporter tells what is committed")
    assert exporter.healthy()
    # What was taken back, and Kafka's own marks of it, is all that may be left.
    newest = exported(exporter, "kafka_topic_partition_current_offset", path)
    lag = exported(exporter, "kafka_consumergroup_lag", path)
    assert lag == {partition: newest[partition] - end for partition, end in ends.items()}


def check_rows(path: Pipeline, stored: Mapping[Place, Message]) -> None:
    """What is stored is what the messages say, and nothing else is."""
    # A damaged name may be another's.
    found: dict[tuple[str, str], list[Any]] = defaultdict(list)
    # Those from Redis the readers have compared.
    for row in path.rows("SELECT * FROM device_metrics WHERE device_id NOT LIKE 'redis-%'"):
        found[row["device_id"], row["metric_name"]].append(row)
    for message in stored.values():
        assert message.value is not None
        document = json.loads(message.value)
        for metric, value in document["metrics"].items():
            rows = found[document["device_id"], metric]
            fitting = [row for row in rows if fits(row, message, document, float(value))]
            assert fitting, f"not stored as sent: {message.value[:300]!r}, but {rows}"
            rows.remove(fitting[0])
    assert not any(found.values()), f"never sent: {[name for name in found if found[name]][:20]}"


def fits(row: Any, message: Message, document: dict[str, Any], value: float) -> bool:
    said = message.time or datetime.fromisoformat(document["time"])
    metadata = document.get("metadata") or {}
    kept = json.loads(row["metadata"] or "{}")
    return (
        same(row["value"], value)
        and abs(row["time"] - said) <= timedelta(microseconds=1)
        and kept.keys() == metadata.keys()
        # PostgreSQL writes out all digits of a number.
        and all(
            (float(kept[name]) if isinstance(value, float) else kept[name]) == value
            for name, value in metadata.items()
        )
    )


def same(one: float, other: float) -> bool:
    return one == other and math.copysign(1, one) == math.copysign(1, other)


def check_maintenance(path: Pipeline, folder: Path) -> None:
    """Rollups and retention go on: every row is rolled up, and what is old is dropped."""
    rows = path.count()
    config = {"database": database_config(path.postgres, path.database, path.postgres.username)}
    command = Command("db", folder, config, {"database_password": path.postgres.password})
    answer: dict[str, Any] = {"pending": None}
    dropped = 0
    deadline = time.monotonic() + MAINTENANCE_SECONDS
    while answer["pending"] != 0 or answer["dropped"]:
        assert time.monotonic() < deadline, answer
        answer = command.answer("maintain")
        dropped += answer["dropped"]
    assert dropped
    for table in ("device_metrics_5m", "device_metrics_1h"):
        query = f"SELECT sum(samples)::bigint AS n FROM {table}"
        assert path.rows(query)[0]["n"] == rows, table
    old = "SELECT count(*) AS n FROM device_metrics WHERE time < now() - INTERVAL '32 days'"
    assert path.count() > 0
    assert path.rows(old)[0]["n"] == 0

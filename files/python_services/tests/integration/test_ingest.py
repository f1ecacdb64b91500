"""prime-spark-ingest between a real Kafka and a real TimescaleDB, with both dying on it."""

from __future__ import annotations

import json
import os
import signal
import time
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest
from tests.integration.servers import KafkaServer, PostgresServer

from ingest_support import PARTITIONS, START, Pipeline, create_pipeline, sample, send_samples
from prime_spark.events import ApiEvent, Inference, encode, new_event_id
from support import (
    Command,
    create_database,
    database_config,
    eventually,
    free_port,
    producer,
    read_all,
    running,
)


@pytest.fixture
def path(kafka: KafkaServer, postgres: PostgresServer, tmp_path: Path) -> Pipeline:
    return create_pipeline(kafka, postgres, tmp_path)


def test_each_topic_reaches_its_table(path: Pipeline) -> None:
    inference = Inference(
        time=START,
        event_id=new_event_id(),
        model_name="llama-3.2:3b",
        source="edge",
        latency_ms=812.5,
        input_tokens=12,
        output_tokens=None,
        prompt_chars=40,
        response_chars=160,
        metadata={"route": "edge", "attempt": 1},
    )
    request = ApiEvent(
        time=START,
        event_id=new_event_id(),
        method="GET",
        endpoint="/api/memory/get/{key}",
        status=404,
        duration_ms=3.25,
    )
    with running(path.command) as ingest:
        eventually(ingest.healthy, what="healthy")
        with producer(path.kafka) as client:
            client.send(path.telemetry, sample(0), key=b"host-1")
            client.send(f"{path.prefix}.inference", encode(inference))
            client.send(f"{path.prefix}.api", encode(request))
        eventually(lambda: path.rows("SELECT * FROM api_events"))
        eventually(lambda: path.rows("SELECT * FROM ai_inference_results"))
        eventually(lambda: path.count() == 2)
        metrics = path.rows("SELECT * FROM device_metrics ORDER BY metric_name")
        assert [tuple(row) for row in metrics] == [
            (START, "host-1", "cpu_percent", 0.0, None),
            (START, "host-1", "memory_percent", 50.0, None),
        ]
        row = dict(path.rows("SELECT * FROM ai_inference_results")[0])
        assert json.loads(row.pop("metadata")) == {"route": "edge", "attempt": 1}
        assert row == {
            "time": START,
            "event_id": inference.event_id,
            "model_name": "llama-3.2:3b",
            "input_tokens": 12,
            "output_tokens": None,
            "prompt_chars": 40,
            "response_chars": 160,
            "latency_ms": 812.5,
            "source": "edge",
        }
        assert tuple(path.rows("SELECT * FROM api_events")[0])[1:6] == (
            request.event_id,
            "GET",
            "/api/memory/get/{key}",
            404,
            3.25,
        )
        assert ingest.metric("prime_spark_ingest_rows_total") == 4
        assert ingest.terminate() == 0


def test_a_message_that_comes_twice_is_one_row(path: Pipeline) -> None:
    with running(path.command) as ingest:
        eventually(ingest.healthy)
        with producer(path.kafka) as client:
            for _ in range(3):
                send_samples(client, path.telemetry, range(50))
        eventually(lambda: ingest.metric("prime_spark_ingest_duplicates_total") == 200)
        assert path.count() == 100
        assert ingest.metric("prime_spark_ingest_rows_total") == 100


def progressed(path: Pipeline, rows: int) -> bool:
    return path.count() > rows


def test_killed_in_the_middle_loses_and_doubles_nothing(path: Pipeline) -> None:
    total = 4000
    with producer(path.kafka) as client, running(path.command) as ingest:
        for start in range(0, total, 500):
            send_samples(client, path.telemetry, range(start, start + 500))
            client.flush()
            if start % 1000 == 0:
                eventually(partial(progressed, path, start))
                ingest.kill()
                ingest.start()
        eventually(lambda: path.count() >= 2 * total, 60, "all rows")
        eventually(lambda: ingest.health().get("status") == "ok")
        assert path.count() == 2 * total
        assert ingest.terminate() == 0
    # Everything was committed: a new start finds nothing to read.
    with running(path.command) as ingest:
        eventually(ingest.healthy)
        with producer(path.kafka) as client:
            send_samples(client, path.telemetry, range(total, total + 1))
        eventually(lambda: path.count() == 2 * total + 2)
        assert ingest.metric("prime_spark_ingest_messages_total") == 1


def test_survives_kafka_and_the_database_going_away(path: Pipeline) -> None:
    with running(path.command) as ingest:
        eventually(ingest.healthy)
        with producer(path.kafka) as client:
            send_samples(client, path.telemetry, range(1000))
        eventually(lambda: path.count() > 0)

        path.postgres.kill()
        with producer(path.kafka) as client:
            send_samples(client, path.telemetry, range(1000, 2000))
        down = eventually(lambda: ingest.health() if not ingest.healthy() else None)
        assert down["http"] == 503
        assert not down["components"]["database"]["ok"]
        assert down["components"]["kafka"]["ok"]
        path.postgres.start()
        eventually(lambda: path.count() >= 4000, 60, "rows after the database came back")
        eventually(ingest.healthy)

        path.kafka.kill()
        eventually(lambda: not ingest.health()["components"]["kafka"]["ok"], 40)
        path.kafka.start()
        with producer(path.kafka) as client:
            send_samples(client, path.telemetry, range(2000, 3000))
        eventually(lambda: path.count() >= 6000, 90, "rows after Kafka came back")
        eventually(ingest.healthy, 30)
        assert path.count() == 6000
        assert ingest.terminate() == 0


def test_starts_before_its_servers(path: Pipeline) -> None:
    path.kafka.stop()
    path.postgres.stop()
    try:
        with running(path.command) as ingest:
            health = eventually(ingest.health)
            assert health["http"] == 503
            assert health["status"] == "failing"
            path.kafka.start()
            path.postgres.start()
            with producer(path.kafka) as client:
                send_samples(client, path.telemetry, range(10))
            eventually(lambda: path.count() == 20, 60)
            eventually(ingest.healthy)
    finally:
        for server in (path.kafka, path.postgres):
            if not server.running:
                server.start()


def test_stops_in_time_while_its_servers_are_away(path: Pipeline) -> None:
    with running(path.command) as ingest:
        eventually(ingest.healthy)
        os.kill(path.kafka.pid, signal.SIGSTOP)  # takes connections, answers nothing
        path.postgres.kill()
        try:
            eventually(lambda: not ingest.health()["components"]["kafka"]["ok"], 40)
            started = time.monotonic()
            assert ingest.terminate() == 0
            assert time.monotonic() - started < 30
        finally:
            os.kill(path.kafka.pid, signal.SIGCONT)
            path.postgres.start()


def test_poison_goes_to_the_dead_letter_topic(path: Pipeline) -> None:
    # A rule only the database knows, as a schema newer than this release might have.
    path.rows("ALTER TABLE device_metrics ADD CONSTRAINT small CHECK (value < 1e6)")
    future = (datetime.now(UTC) + timedelta(hours=2)).isoformat()
    body = '{"time":"2026-03-01T00:00:00Z","device_id":"%s","metrics":{%s}%s}'
    poison: list[tuple[bytes | None, str]] = [
        (b"not json", "malformed"),
        (b"\xff\xfe", "malformed"),
        (None, "tombstone"),
        (b"[]", "Expected `object`"),
        (b"{}", "missing required field"),
        ((body % ("h", '"cpu_percent":NaN', "")).encode(), "malformed"),
        ((body % ("h", '"cpu_percent":1e999', "")).encode(), "out of range"),
        ((body % ("h\\u0000", '"cpu_percent":1', "")).encode(), "regex"),
        ((body % ("h", '"cpu_percent":1', ',"metadata":{"a":"\\u0000"}')).encode(), "NUL"),
        ((body % ("h", '"cpu_percent":1', ',"metadata":{"\\u0000":1}')).encode(), "NUL"),
        ((body % ("h", '"cpu_percent":1', ',"metadata":{"a":"\\ud800"}')).encode(), "surrogate"),
        ((body % ("h", '"cpu_percent":1', "")).replace("2026-03-01T00:00:00Z", future).encode(),
         "more than an hour in the future"),
        ((body % ("h", '"cpu_percent":1', "")).replace("2026", "9999").encode(), "future"),
        ((body % ("h", '"cpu_percent":1', "")).replace(
            "2026-03-01T00:00:00Z", "0001-01-01T00:00:00+14:00").encode(), "calendar"),
        ((body % ("h", '"cpu_percent":1', "")).replace("00Z", "00").encode(), "timezone"),
        ((body % ("h", '"cpu_percent":1', ',"metadata":{"a":"%s"}' % ("x" * 70_000))).encode(),
         "more than the 65536 allowed"),
        (sample(999_999, "h", cpu_percent=2e6, memory_percent=1.0), "23514"),
        (b"x" * 1_000_000, "more than the 65536 allowed"),
    ]  # fmt: skip
    good = 0
    with running(path.command) as ingest:
        eventually(ingest.healthy)
        with producer(path.kafka) as client:
            for value, _ in poison:
                send_samples(client, path.telemetry, range(good, good + 40))
                client.send(path.telemetry, value, key=b"host-1", partition=1)
                good += 40
        eventually(lambda: path.count() >= 2 * good, what="neighbours")
        letters = eventually(
            lambda: found if len(found := path.dead_letters()) >= len(poison) else None
        )
        eventually(lambda: ingest.metric("prime_spark_ingest_dead_letters_total") >= len(poison))
        eventually(ingest.healthy)
    assert path.count() == 2 * good
    assert len(letters) == len(poison)
    originals = {
        (record.partition, record.offset): record.value
        for record in read_all(path.kafka, path.telemetry, PARTITIONS)
    }
    for (expected, reason), (headers, value) in zip(poison, sorted(
        letters, key=lambda letter: int(letter[0]["offset"])
    ), strict=True):  # fmt: skip
        assert value == expected
        assert reason in headers["reason"]
        assert headers["topic"] == path.telemetry
        assert originals[int(headers["partition"]), int(headers["offset"])] == expected


def test_two_members_share_and_take_over(path: Pipeline, tmp_path: Path) -> None:
    second = Command(
        "ingest",
        tmp_path / "second",
        {
            **path.command.config,
            "group_instance_id": "test-2",
            "http": {"host": "127.0.0.1", "port": free_port()},
        },
        path.command.credentials,
    )
    (tmp_path / "second").mkdir()
    with producer(path.kafka) as client, running(path.command) as one, running(second) as two:
        eventually(one.healthy)
        eventually(two.healthy)
        send_samples(client, path.telemetry, range(1000))
        client.flush()
        eventually(lambda: path.count() == 2000)
        one.kill()
        send_samples(client, path.telemetry, range(1000, 2000))
        client.flush()
        eventually(lambda: path.count() == 4000, 60, "rows of the dead member's partitions")


def test_missing_schema_shows_and_heals(path: Pipeline, tmp_path: Path) -> None:
    create_database(path.postgres, f"{path.prefix}_empty")
    config = database_config(path.postgres, f"{path.prefix}_empty", "prime_spark_ingest")
    path.command.config["database"] = config
    with running(path.command) as ingest:
        detail = eventually(
            lambda: ingest.health().get("components", {}).get("database", {}).get("detail")
            if "migrate" in str(ingest.health()) else None
        )  # fmt: skip
        assert "run prime-spark-db migrate" in detail
        owner = {"database": {**config, "username": path.postgres.username}}
        secrets = {"database_password": path.postgres.password}
        (tmp_path / "owner").mkdir()
        Command("db", tmp_path / "owner", owner, secrets).answer("migrate")
        eventually(ingest.healthy)

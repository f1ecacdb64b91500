"""prime-spark-telemetry with a real Kafka and Redis that come and go."""

from __future__ import annotations

import itertools
import json
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from tests.integration.servers import KafkaServer, RedisServer

from prime_spark.events import Telemetry, decode
from support import (
    Command,
    Daemon,
    eventually,
    free_port,
    kafka_admin,
    kafka_config,
    read_all,
    running,
)

INTERVAL = 0.1  # seconds between samples

_numbers = itertools.count(1)


@dataclass
class Host:
    """A collector and the topic it writes."""

    kafka: KafkaServer
    topic: str
    command: Command

    def samples(self) -> list[Telemetry]:
        return [decode(record.value, Telemetry) for record in read_all(self.kafka, self.topic, 3)]


def held(daemon: Daemon) -> float:
    return daemon.metric("prime_spark_telemetry_buffer_records")


def create_redis_user(server: RedisServer) -> None:
    """Create the collector's user with the few rights it needs."""
    rights = ["reset", "on", ">redis secret", "~metrics:*", "+hset", "+expire", "+ping"]
    with Redis.from_url(server.url) as administrator:
        administrator.execute_command("ACL", "SETUSER", "telemetry", *rights)


@pytest.fixture
def host(kafka: KafkaServer, redis: RedisServer, tmp_path: Path) -> Host:
    topic = f"t{next(_numbers)}.telemetry"
    acl = {"resource_type": "TOPIC", "name": topic, "operations": ["WRITE", "DESCRIBE"]}
    kafka_admin(
        kafka,
        tmp_path,
        topics={topic: {"partitions": 3}},
        users={"telemetry": "kafka secret"},
        acls=[{"principal": "User:telemetry", **acl}],
    ).answer("apply")
    create_redis_user(redis)
    config: dict[str, Any] = {
        "device_id": "host-1",
        "interval_seconds": INTERVAL,
        "topic": topic,
        "kafka": kafka_config(kafka, "telemetry"),
        "redis": {
            "host": redis.host,
            "port": redis.port,
            "username": "telemetry",
            "credential": "redis_password",
        },
        "buffer": {"path": str(tmp_path / "buffer"), "fsync_seconds": 0.2},
        "http": {"host": "127.0.0.1", "port": free_port()},
    }
    secrets = {"kafka_password": "kafka secret", "redis_password": "redis secret"}
    return Host(kafka, topic, Command("telemetry", tmp_path, config, secrets))


def test_kafka_comes_after_the_collector(host: Host) -> None:
    host.kafka.stop()
    try:
        with running(host.command) as telemetry:
            eventually(lambda: held(telemetry) >= 20)
            health = telemetry.health()
            assert (health["status"], health["http"]) == ("degraded", 200)
            assert not health["components"]["kafka"]["ok"]
            host.kafka.start()
            eventually(lambda: held(telemetry) <= 1, 60, "drained")
            eventually(telemetry.healthy)
            taken = telemetry.metric("prime_spark_telemetry_samples_total")
            assert telemetry.terminate() == 0
    finally:
        if not host.kafka.running:
            host.kafka.start()
    times = [sample.time for sample in host.samples()]
    assert len(times) >= taken
    assert times == sorted(set(times)), "each sample once, in order"
    gaps = [(after - before).total_seconds() for before, after in itertools.pairwise(times)]
    # A gap says nothing by itself: a short one follows a tick that came late.
    seconds = (times[-1] - times[0]).total_seconds()
    assert len(times) <= seconds / INTERVAL + 2, "a tick was repeated or made up for"
    assert max(gaps) < 5, "Kafka's absence holds up no sample"
    sample = host.samples()[0]
    assert sample.device_id == "host-1"
    assert {"cpu_percent", "memory_percent", "disk_percent", "load_avg"} <= set(sample.metrics)
    keys = {record.partition for record in read_all(host.kafka, host.topic, 3)}
    assert len(keys) == 1, "one device, one partition"


def test_killed_while_kafka_is_away_loses_nothing(host: Host) -> None:
    host.kafka.stop()
    try:
        with running(host.command) as telemetry:
            eventually(lambda: held(telemetry) >= 10)
            before = held(telemetry)
            telemetry.kill()
            telemetry.start()
            eventually(lambda: held(telemetry) >= before + 5)
            taken = held(telemetry)
            host.kafka.start()
            eventually(lambda: held(telemetry) <= 1, 60)
            assert telemetry.terminate() == 0
    finally:
        if not host.kafka.running:
            host.kafka.start()
    times = [sample.time for sample in host.samples()]
    assert len(times) >= taken
    assert times == sorted(set(times))


def test_broker_killed_under_way(host: Host) -> None:
    with running(host.command) as telemetry:
        eventually(telemetry.healthy)
        host.kafka.kill()
        eventually(lambda: held(telemetry) >= 5)
        host.kafka.start()
        eventually(lambda: held(telemetry) <= 1, 60)
        taken = telemetry.metric("prime_spark_telemetry_samples_total")
        assert telemetry.terminate() == 0
    times = [sample.time for sample in host.samples()]
    # A batch under way when the broker died may have been stored; then it is there twice.
    assert list(dict.fromkeys(times)) == sorted(set(times))
    assert len(set(times)) >= taken


def test_stops_in_time_while_kafka_does_not_answer(host: Host) -> None:
    with running(host.command) as telemetry:
        eventually(telemetry.healthy)
        os.kill(host.kafka.pid, signal.SIGSTOP)  # takes connections, answers nothing
        try:
            eventually(lambda: held(telemetry) >= 5)
            started = time.monotonic()
            assert telemetry.terminate() == 0
            assert time.monotonic() - started < 30
        finally:
            os.kill(host.kafka.pid, signal.SIGCONT)


def test_both_killed_with_a_batch_under_way(host: Host) -> None:
    with running(host.command) as telemetry:
        eventually(telemetry.healthy)
        os.kill(host.kafka.pid, signal.SIGSTOP)  # takes requests, answers none
        eventually(lambda: held(telemetry) >= 5)
        taken = telemetry.metric("prime_spark_telemetry_samples_total")
        telemetry.kill()
        host.kafka.kill()
        host.kafka.start()
        telemetry.start()
        eventually(telemetry.healthy)
        eventually(lambda: held(telemetry) <= 1)
        taken += telemetry.metric("prime_spark_telemetry_samples_total")
        assert telemetry.terminate() == 0
    times = [sample.time for sample in host.samples()]
    assert list(dict.fromkeys(times)) == sorted(set(times))
    assert len(set(times)) >= taken


def test_newest_sample_is_in_redis(host: Host, redis: RedisServer) -> None:
    client = Redis.from_url(redis.url, decode_responses=True)
    with running(host.command) as telemetry:
        first = eventually(lambda: client.hgetall("metrics:host-1"))
        assert set(first) == {"cpu", "memory", "disk", "time"}
        assert 0 <= float(first["memory"]) <= 100
        eventually(lambda: str(client.hget("metrics:host-1", "time")) > str(first["time"]))
        assert client.ttl("metrics:host-1") > 3600

        redis.kill()
        eventually(lambda: not telemetry.health()["components"]["redis"]["ok"])
        taken = telemetry.metric("prime_spark_telemetry_samples_total")
        eventually(lambda: telemetry.metric("prime_spark_telemetry_samples_total") > taken + 5)
        assert telemetry.health()["http"] == 200
        redis.start()
        create_redis_user(redis)
        eventually(telemetry.healthy)
        client.close()


def test_second_collector_is_refused(host: Host, tmp_path: Path) -> None:
    with running(host.command) as telemetry:
        eventually(telemetry.health)
        config = {**host.command.config, "http": {"host": "127.0.0.1", "port": free_port()}}
        (tmp_path / "second").mkdir()
        second = Command("telemetry", tmp_path / "second", config, host.command.credentials)
        assert "is in use by another process" in second.run(expect=2).stderr


def test_logs_are_json_without_secrets(host: Host) -> None:
    with running(host.command) as telemetry:
        eventually(telemetry.healthy)
        assert telemetry.terminate() == 0
        text = telemetry.log.read_text()
    assert all(json.loads(line)["service"] == "telemetry" for line in text.splitlines())
    assert "secret" not in text

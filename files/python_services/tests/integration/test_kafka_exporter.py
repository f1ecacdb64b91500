"""prime-spark-kafka-exporter against a real broker, with the rights that the role gives it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from kafka import KafkaConsumer, TopicPartition
from kafka.structs import OffsetAndMetadata
from prometheus_client.parser import text_string_to_metric_families
from tests.integration.servers import KafkaServer, kafka_server

from support import Command, Daemon, eventually, free_port, kafka_admin, producer, running

PASSWORD = "exporter's password"
# As roles/kafka/defaults/main.yml has them.
RIGHTS: list[dict[str, Any]] = [
    {"principal": "User:exporter", "resource_type": kind, "name": name, "operations": ["DESCRIBE"]}
    for kind, name in (("TOPIC", "*"), ("GROUP", "*"), ("CLUSTER", "kafka-cluster"))
]


@pytest.fixture(scope="module")
def server() -> Iterator[KafkaServer]:
    """A broker of its own: it is stopped."""
    with kafka_server() as running_server:
        yield running_server


@pytest.fixture(scope="module")
def exporter(server: KafkaServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    folder = tmp_path_factory.mktemp("exporter")
    kafka_admin(
        server,
        folder,
        topics={"orders": {"partitions": 2}},
        users={"exporter": PASSWORD},
        acls=RIGHTS,
    ).answer("apply")
    config = {
        "kafka": {
            "bootstrap_servers": [server.bootstrap_servers],
            "username": "exporter",
            "credential": "kafka_password",
        },
        "http": {"host": "127.0.0.1", "port": free_port()},
        "interval_seconds": 0.2,
        "timeout_seconds": 3,
    }
    with running(Command("kafka-exporter", folder, config, {"kafka_password": PASSWORD})) as daemon:
        eventually(daemon.healthy, what="healthy")
        yield daemon


def series(exporter: Daemon) -> dict[tuple[str, ...], float]:
    """(name, label values by sorted label name) to value, of everything about Kafka."""
    return {
        (sample.name, *(sample.labels[key] for key in sorted(sample.labels))): sample.value
        for family in text_string_to_metric_families(exporter.get("/metrics")[1])
        for sample in family.samples
        if sample.name.startswith("kafka_")
    }


def commit(server: KafkaServer, offset: int) -> None:
    client = KafkaConsumer(
        bootstrap_servers=server.bootstrap_servers,
        security_protocol="SASL_PLAINTEXT",
        sasl_mechanism="SCRAM-SHA-512",
        sasl_plain_username=server.admin_username,
        sasl_plain_password=server.admin_password,
        group_id="billing",
        enable_auto_commit=False,
    )
    try:
        place = TopicPartition("orders", 0)
        client.assign([place])
        client.commit({place: OffsetAndMetadata(offset, "", -1)})
    finally:
        client.close()


def test_offsets_lag_and_members(server: KafkaServer, exporter: Daemon) -> None:
    with producer(server) as sender:
        for number in range(30):
            sender.send("orders", b"x", partition=number % 2)
    commit(server, 5)

    def seen() -> dict[tuple[str, ...], float] | None:
        found = series(exporter)
        return found if ("kafka_consumergroup_lag", "billing", "0", "orders") in found else None

    found = eventually(seen, what="the group's lag")
    assert found["kafka_brokers",] == 1
    assert found["kafka_topic_partitions", "orders"] == 2
    assert found["kafka_topic_partition_current_offset", "0", "orders"] == 15
    assert found["kafka_topic_partition_oldest_offset", "0", "orders"] == 0
    assert found["kafka_topic_partition_under_replicated_partition", "0", "orders"] == 0
    assert found["kafka_consumergroup_current_offset", "billing", "0", "orders"] == 5
    assert found["kafka_consumergroup_lag", "billing", "0", "orders"] == 10
    assert found["kafka_consumergroup_lag_sum", "billing", "orders"] == 10
    assert found["kafka_consumergroup_members", "billing"] == 0
    # Nothing was committed for partition 1: that is no lag of -1.
    assert ("kafka_consumergroup_lag", "billing", "1", "orders") not in found
    assert not any(value.startswith("__") for place in found for value in place[1:])


def test_lag_follows(server: KafkaServer, exporter: Daemon) -> None:
    commit(server, 15)
    place = ("kafka_consumergroup_lag_sum", "billing", "orders")
    eventually(lambda: series(exporter).get(place) == 0, what="no lag")


def test_away_is_no_standstill(server: KafkaServer, exporter: Daemon) -> None:
    """Old values would look like a cluster that does nothing; and it comes back by itself."""
    server.stop()
    eventually(lambda: exporter.health().get("http") == 503, what="503 while Kafka is away")
    assert series(exporter) == {("kafka_brokers",): 0}
    assert exporter.metric("prime_spark_kafka_exporter_failures_total") > 0
    server.start()
    eventually(exporter.healthy, 60, what="healthy again")
    assert series(exporter)["kafka_topic_partitions", "orders"] == 2
    assert exporter.terminate() == 0

"""Kafka takes and gives records over SCRAM, refuses strangers, and keeps records over a kill."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from typing import Any

import aiokafka
import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError, TopicAuthorizationFailedError

from tests.integration.servers import KafkaServer, kafka_server

DEADLINE = 30


@pytest.fixture(scope="module")
def server() -> Iterator[KafkaServer]:
    with kafka_server() as running:
        yield running


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, DEADLINE))


def login(server: KafkaServer, password: str | None = None) -> dict[str, str]:
    return {
        "bootstrap_servers": server.bootstrap_servers,
        "security_protocol": "SASL_PLAINTEXT",
        "sasl_mechanism": "SCRAM-SHA-512",
        "sasl_plain_username": server.admin_username,
        "sasl_plain_password": password or server.admin_password,
    }


async def create(server: KafkaServer, topic: str) -> None:
    admin = AIOKafkaAdminClient(**login(server))
    await admin.start()
    try:
        answer = await admin.create_topics([NewTopic(topic, 1, 1)])
        assert [error[1] for error in answer.topic_errors] == [0]
    finally:
        await admin.close()


async def produce(
    server: KafkaServer, topic: str, *values: bytes, compression: str | None = None
) -> None:
    async with aiokafka.AIOKafkaProducer(**login(server), compression_type=compression) as producer:
        for value in values:
            await producer.send_and_wait(topic, value)


async def consume(server: KafkaServer, topic: str, count: int, group: str) -> list[bytes]:
    async with aiokafka.AIOKafkaConsumer(
        topic, group_id=group, auto_offset_reset="earliest", **login(server)
    ) as consumer:
        return [(await consumer.getone()).value for _ in range(count)]


def test_records_survive_a_kill(server: KafkaServer) -> None:
    run(create(server, "telemetry"))
    run(produce(server, "telemetry", b"one", b"two"))
    assert run(consume(server, "telemetry", 2, "before")) == [b"one", b"two"]

    server.kill()
    server.start()
    run(produce(server, "telemetry", b"three"))
    assert run(consume(server, "telemetry", 3, "after")) == [b"one", b"two", b"three"]
    # The group's offsets are as lasting as the records.
    assert run(consume(server, "telemetry", 1, "before")) == [b"three"]

    server.stop()
    server.start()
    assert run(consume(server, "telemetry", 3, "again")) == [b"one", b"two", b"three"]


@pytest.mark.parametrize("compression", ["gzip", "snappy", "lz4", "zstd"])
def test_takes_every_compression(server: KafkaServer, compression: str) -> None:
    """The broker unpacks each batch, some with a native library that it puts into /tmp."""
    run(create(server, compression))
    run(produce(server, compression, b"x" * 1000, compression=compression))
    assert run(consume(server, compression, 1, "reader")) == [b"x" * 1000]


def test_refuses_a_wrong_password(server: KafkaServer) -> None:
    async def attempt() -> None:
        producer = aiokafka.AIOKafkaProducer(**login(server, "wrong"))
        try:
            await producer.start()
        finally:
            await producer.stop()

    with pytest.raises(KafkaError):
        run(attempt())


def test_denies_what_no_acl_allows(server: KafkaServer) -> None:
    """A user without ACLs logs in, and may not write."""
    server.tool("kafka-topics.sh", "--create", "--topic", "guarded")
    server.tool(
        "kafka-configs.sh",
        *("--alter", "--entity-type", "users", "--entity-name", "guest"),
        *("--add-config", "SCRAM-SHA-512=[password=guest-password]"),
    )

    async def attempt() -> None:
        user = {
            **login(server, "guest-password"),
            "sasl_plain_username": "guest",
        }
        async with aiokafka.AIOKafkaProducer(**user) as producer:
            await producer.send_and_wait("guarded", b"x")

    with pytest.raises(TopicAuthorizationFailedError):
        run(attempt())
    server.tool(
        "kafka-acls.sh",
        *("--add", "--allow-principal", "User:guest", "--operation", "Write"),
        *("--topic", "guarded"),
    )
    run(attempt())
    assert run(consume(server, "guarded", 1, "reader")) == [b"x"]

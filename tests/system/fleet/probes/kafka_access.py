"""What Kafka lets whom do: {attempt: "allowed" or the name of the error}. Needs kafka-python.

Argument: where Kafka listens, host:port. What should be refused leaves nothing behind.
"""

import json
import re
import socket
import struct
import sys
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import KafkaAdminClient
from kafka.errors import KafkaError
from prime_spark.kafka_admin.scram import can_log_in

SERVER = sys.argv[1]
CREDENTIALS = Path("/etc/prime-spark/kafka-admin/credentials")


def password(user: str) -> str:
    return (CREDENTIALS / user).read_text().strip()


def login(user: str) -> dict[str, Any]:
    return {
        "bootstrap_servers": SERVER,
        "security_protocol": "SASL_PLAINTEXT",
        "sasl_mechanism": "SCRAM-SHA-512",
        "sasl_plain_username": user,
        "sasl_plain_password": password(user),
    }


def anonymous() -> str:
    """Ask for metadata without having logged in; a broker that refuses hangs up.

    It answers ApiVersions to anybody, which shows that it understands the question.
    """
    host, port = SERVER.rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        versions = ask(connection, 18, 0, b"")
        known = {versions[i : i + 6] for i in range(6, len(versions), 6)}
        supported = {
            key: (low, high) for key, low, high in (struct.unpack(">hhh", e) for e in known)
        }
        low, high = supported[3]
        if not low <= 4 <= high:
            raise SystemExit(f"the broker knows Metadata {low} to {high}, not 4")
        try:
            ask(connection, 3, 4, struct.pack(">ib", -1, 0))
        except ConnectionError:
            return "refused"
    return "allowed"


def ask(connection: socket.socket, api: int, version: int, body: bytes) -> bytes:
    request = struct.pack(">hhih", api, version, 1, 4) + b"test" + body
    connection.sendall(struct.pack(">i", len(request)) + request)
    (size,) = struct.unpack(">i", receive(connection, 4))
    return receive(connection, size)[4:]


def receive(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        chunk = connection.recv(size - len(data))
        if not chunk:
            raise ConnectionResetError("closed")
        data += chunk
    return data


def log_in(user: str, secret: str) -> str:
    allowed = can_log_in(SERVER, user, secret, "SCRAM-SHA-512", 10)
    return "allowed" if allowed else "refused"


def write(user: str, topic: str) -> None:
    producer = KafkaProducer(**login(user), max_block_ms=10_000)
    try:
        producer.send(topic, key=b"fleet-test-access", value=b"").get(timeout=10)
    finally:
        producer.close(timeout=5)


def read(user: str, topic: str, group: str | None = None) -> None:
    consumer = KafkaConsumer(**login(user), group_id=group, enable_auto_commit=False)
    try:
        if group is None:
            partition = TopicPartition(topic, 0)
            consumer.assign([partition])
            consumer.seek_to_beginning(partition)
        else:
            consumer.subscribe([topic])
        consumer.poll(timeout_ms=5000, max_records=1)
    finally:
        consumer.close()


def administer(user: str, work: Callable[[Any], Any]) -> None:
    client = KafkaAdminClient(**login(user))
    try:
        work(client)
    finally:
        client.close()


def create(client: Any) -> None:
    name = f"fleet-test-{uuid.uuid4()}"
    client.create_topics({name: {"num_partitions": 1, "replication_factor": 1}})


def outcome(attempt: Callable[[], str | None]) -> str:
    try:
        return attempt() or "allowed"
    except KafkaError as error:
        # What the client does not expect, it tells in words alone.
        told = re.search(r"\[Error \d+\] (\w+)", str(error)) if type(error) is KafkaError else None
        return told[1] if told else type(error).__name__


USERS = ("admin", "telemetry", "ingest", "api", "agent", "exporter")
attempts: dict[str, Callable[[], str | None]] = {
    "anonymous": anonymous,
    **{f"{user}, right password": partial(log_in, user, password(user)) for user in USERS},
    **{f"{user}, wrong password": partial(log_in, user, password(user)[::-1]) for user in USERS},
    "unknown user": partial(log_in, "nobody", password("telemetry")),
    "telemetry writes analytics.events": partial(write, "telemetry", "analytics.events"),
    "telemetry writes prime-spark.dlq": partial(write, "telemetry", "prime-spark.dlq"),
    "telemetry reads edge.telemetry": partial(read, "telemetry", "edge.telemetry"),
    "telemetry creates a topic": partial(administer, "telemetry", create),
    "ingest reads edge.telemetry": partial(read, "ingest", "edge.telemetry"),
    "ingest reads prime-spark.dlq": partial(read, "ingest", "prime-spark.dlq"),
    "ingest writes edge.telemetry": partial(write, "ingest", "edge.telemetry"),
    "ingest reads in another group": partial(read, "ingest", "edge.telemetry", "another"),
    "ingest creates a topic": partial(administer, "ingest", create),
    "api writes edge.telemetry": partial(write, "api", "edge.telemetry"),
    "api writes prime-spark.dlq": partial(write, "api", "prime-spark.dlq"),
    "api reads analytics.events": partial(read, "api", "analytics.events"),
    "api creates a topic": partial(administer, "api", create),
    "agent writes analytics.events": partial(write, "agent", "analytics.events"),
    "agent writes edge.telemetry": partial(write, "agent", "edge.telemetry"),
    "agent reads edge.ai.inference": partial(read, "agent", "edge.ai.inference"),
    "agent creates a topic": partial(administer, "agent", create),
    "exporter writes analytics.events": partial(write, "exporter", "analytics.events"),
    "exporter reads analytics.events": partial(read, "exporter", "analytics.events"),
    "exporter creates a topic": partial(administer, "exporter", create),
}
print(json.dumps({name: outcome(attempt) for name, attempt in attempts.items()}))

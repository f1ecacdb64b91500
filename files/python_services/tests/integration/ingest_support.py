"""What the tests of ingest share: topics and a database of a test's own, and samples."""

from __future__ import annotations

import itertools
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from tests.integration.servers import KafkaServer, PostgresServer

from prime_spark.events import Telemetry, encode
from support import (
    Command,
    create_database,
    create_role,
    database_config,
    free_port,
    kafka_admin,
    kafka_config,
    read_all,
    sql,
)

PARTITIONS = 3
START = datetime(2026, 3, 1, tzinfo=UTC)
_numbers = itertools.count(1)


class IngestCommand(Command):
    """prime-spark-ingest, and its dlq."""

    def dlq(self, command: str, *arguments: str, expect: int = 0) -> str:
        """Run `prime-spark-ingest dlq`; return what it printed, errors included."""
        with self.dlq_process(command, *arguments) as process:
            output, error = process.communicate(timeout=90)
        said = (output + error).decode()
        assert process.returncode == expect, f"exit {process.returncode}\n{said}"
        return said

    def dlq_bytes(self, command: str, *arguments: str) -> bytes:
        """Run it; return what it wrote to stdout."""
        with self.dlq_process(command, *arguments) as process:
            output, error = process.communicate(timeout=90)
        assert process.returncode == 0, error
        return output

    def dlq_process(self, command: str, *arguments: str) -> subprocess.Popen[bytes]:
        """Start it."""
        script, option, config = self.arguments()
        return subprocess.Popen(
            [script, "dlq", command, option, config, *arguments],
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )


@dataclass
class Pipeline:
    """One test's own topics and database, and the ingest between them."""

    kafka: KafkaServer
    postgres: PostgresServer
    database: str
    prefix: str
    command: IngestCommand

    @property
    def telemetry(self) -> str:
        return f"{self.prefix}.telemetry"

    def rows(self, query: str = "SELECT count(*) AS n FROM device_metrics") -> Any:
        return sql(self.postgres, self.database, query)

    def count(self) -> int:
        number: int = self.rows()[0]["n"]
        return number

    def dead_letters(self) -> list[tuple[dict[str, str], bytes]]:
        return [
            ({name: value.decode() for name, value in record.headers}, record.value)
            for record in read_all(self.kafka, f"{self.prefix}.dlq", 1)
        ]


def create_pipeline(kafka: KafkaServer, postgres: PostgresServer, tmp_path: Path) -> Pipeline:
    prefix = f"i{next(_numbers)}"
    create_role(postgres, "prime_spark_ingest", "database secret")
    create_database(postgres, prefix)
    owner = {"database": database_config(postgres, prefix, postgres.username)}
    Command("db", tmp_path, owner, {"database_password": postgres.password}).answer("migrate")
    names = [f"{prefix}.telemetry", f"{prefix}.inference", f"{prefix}.api"]
    topics: dict[str, Any] = {name: {"partitions": PARTITIONS} for name in names}
    topics[f"{prefix}.dlq"] = {"partitions": 1, "configs": {"max.message.bytes": "2097152"}}
    acls = [
        {"resource_type": "TOPIC", "name": name, "operations": ["READ", "DESCRIBE"]}
        for name in names
    ]
    acls += [
        {"resource_type": "GROUP", "name": f"{prefix}-group", "operations": ["READ"]},
        {
            "resource_type": "TOPIC",
            "name": f"{prefix}.dlq",
            "operations": ["READ", "WRITE", "DESCRIBE"],
        },
    ]
    # As a collector, and transactions, which no collector makes.
    sender = [
        {"resource_type": "TOPIC", "name": names[0], "operations": ["WRITE", "DESCRIBE"]},
        {
            "resource_type": "TRANSACTIONAL_ID",
            "name": f"{prefix}-transactions",
            "operations": ["WRITE", "DESCRIBE"],
        },
    ]
    kafka_admin(
        kafka,
        tmp_path,
        topics=topics,
        users={"ingest": "kafka secret", "telemetry": "telemetry secret"},
        acls=[{"principal": "User:ingest", **acl} for acl in acls]
        + [{"principal": "User:telemetry", **acl} for acl in sender],
    ).answer("apply")
    config = {
        "kafka": kafka_config(kafka, "ingest"),
        "group_id": f"{prefix}-group",
        "group_instance_id": "test-1",
        "topics": dict(zip(("telemetry", "inference", "api_events"), names, strict=True)),
        "dead_letter_topic": f"{prefix}.dlq",
        "database": database_config(postgres, prefix, "prime_spark_ingest"),
        "session_timeout_ms": 6000,
        "max_age_days": 3650,  # START, and what is sent from it on, is of no age that matters here
        "batch": {"max_records": 200, "max_wait_ms": 100},
        "http": {"host": "127.0.0.1", "port": free_port()},
    }
    secrets = {"kafka_password": "kafka secret", "database_password": "database secret"}
    return Pipeline(
        kafka, postgres, prefix, prefix, IngestCommand("ingest", tmp_path, config, secrets)
    )


def sample(number: int, device: str = "host-1", **metrics: float) -> bytes:
    moment = START + timedelta(seconds=number)
    values = metrics or {"cpu_percent": float(number % 100), "memory_percent": 50.0}
    return encode(Telemetry(time=moment, device_id=device, metrics=values))


def send_samples(client: Any, topic: str, numbers: range) -> None:
    for number in numbers:
        device = f"host-{number % 5}"
        client.send(topic, sample(number, device), key=device.encode())

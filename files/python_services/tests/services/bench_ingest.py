"""How fast ingest is: `PYTHONPATH=<repository> python tests/services/bench_ingest.py [MESSAGES]`.

Fills a topic with telemetry of five metrics each, then starts prime-spark-ingest and takes the
time from its first to its last row. Kafka, PostgreSQL and ingest share the machine.
"""

from __future__ import annotations

import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from lab.servers import kafka_server, postgres_server
from prime_spark.events import Telemetry, encode
from support import (
    Command,
    create_database,
    create_role,
    database_config,
    eventually,
    free_port,
    kafka_admin,
    kafka_config,
    producer,
    running,
    sql,
)

METRICS = ("cpu_percent", "memory_percent", "disk_percent", "temperature", "load_avg")
TOPICS = ("edge.telemetry", "edge.ai.inference", "analytics.events", "prime-spark.dlq")


def main() -> None:
    messages = int(sys.argv[1]) if len(sys.argv) > 1 else 50_000
    with (
        tempfile.TemporaryDirectory() as name,
        kafka_server() as kafka,
        postgres_server() as postgres,
    ):
        folder = Path(name)
        create_role(postgres, "prime_spark_ingest", "secret")
        create_database(postgres, "bench")
        owner = {"database": database_config(postgres, "bench", postgres.username)}
        Command("db", folder, owner, {"database_password": postgres.password}).answer("migrate")
        kafka_admin(kafka, folder, topics={topic: {"partitions": 3} for topic in TOPICS}).answer()
        start = datetime(2026, 3, 1, tzinfo=UTC)
        with producer(kafka) as client:
            for number in range(messages):
                sample = Telemetry(
                    time=start + timedelta(seconds=number // 20),
                    device_id=f"host-{number % 20}",
                    metrics=dict.fromkeys(METRICS, number / 7),
                )
                client.send(TOPICS[0], encode(sample), key=sample.key.encode())
        config = {
            "kafka": kafka_config(kafka, kafka.admin_username),
            "group_id": "bench",
            "database": database_config(postgres, "bench", "prime_spark_ingest"),
            "http": {"host": "127.0.0.1", "port": free_port()},
        }
        secrets = {"kafka_password": kafka.admin_password, "database_password": "secret"}
        rows = messages * len(METRICS)
        with running(Command("ingest", folder, config, secrets)) as ingest:
            stored = "prime_spark_ingest_rows_total"
            first = eventually(lambda: ingest.metric(stored))
            began = time.monotonic()
            eventually(lambda: ingest.metric(stored) == rows, 600)
            seconds = time.monotonic() - began
            assert (
                sql(postgres, "bench", "SELECT count(*) AS n FROM device_metrics")[0]["n"] == rows
            )
            rate = (rows - first) / seconds
            used = ingest.metric("process_resident_memory_bytes") / 2**20
        sys.stdout.write(
            f"rows={rows} seconds={seconds:.1f} rows_per_second={rate:.0f} "
            f"messages_per_second={rate / len(METRICS):.0f} memory_mib={used:.0f}\n"
        )


if __name__ == "__main__":
    main()

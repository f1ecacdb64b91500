"""How fast ingest is: `make bench-ingest ARGS="--messages 100000 --backlog"`.

Fills a topic with telemetry of five metrics each and drains it with prime-spark-ingest, whose
committed rows are counted in the database. Beside it, on the same database: one INSERT per row,
executemany, and what COPY and upsert can do without Kafka and without encoding anything; where
Telegraf is installed, what it stores of the same topic, in a layout of its own and in ours. Kafka,
PostgreSQL and ingest share the machine: compare the ratios.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
from tests.integration.servers import KafkaServer, PostgresServer, kafka_server, postgres_server

from prime_spark.config import KafkaConfig
from prime_spark.events import Telemetry, encode
from prime_spark.kafka.producer import Producer, Record
from prime_spark.timeseries.rows import COPY_HEADER, COPY_TRAILER, encode_rows
from support import (
    Command,
    Daemon,
    create_database,
    create_role,
    database_config,
    eventually,
    free_port,
    kafka_admin,
    kafka_config,
    running,
    sql,
)

METRICS = ("cpu_percent", "memory_percent", "disk_percent", "temperature", "load_avg")
TOPICS = ("edge.telemetry", "edge.ai.inference", "analytics.events", "prime-spark.dlq")
BACKLOG = "bench.backlog"
DEVICES = 20
BATCH_MESSAGES = 2000  # as ingest's own default
SINGLE_ROWS = 10_000
# As in production: a commit is on the disk before it is acknowledged.
DURABLE = {"fsync": "on", "full_page_writes": "on", "shared_buffers": "256MB"}
INSERT = (
    "INSERT INTO device_metrics (time, device_id, metric_name, value) VALUES ($1, $2, $3, $4)"
    " ON CONFLICT DO NOTHING"
)
# Ends where the present is, so that "the newest data" is what a dashboard would ask for.
END = datetime.now(UTC).replace(microsecond=0)


@dataclass
class Bench:
    """The two servers, and one database with the schema."""

    folder: Path
    kafka: KafkaServer
    postgres: PostgresServer

    def count(self) -> int:
        query = "SELECT count(*) AS n FROM device_metrics"
        number: int = sql(self.postgres, "bench", query)[0]["n"]
        return number

    def empty(self) -> None:
        sql(self.postgres, "bench", "TRUNCATE device_metrics")

    @contextmanager
    def ingest(self, topic: str) -> Iterator[Daemon]:
        config = {
            "kafka": kafka_config(self.kafka, self.kafka.admin_username),
            "group_id": f"bench-{topic}",
            "topics": {"telemetry": topic},
            "database": database_config(self.postgres, "bench", "prime_spark_ingest"),
            "http": {"host": "127.0.0.1", "port": free_port()},
        }
        secrets = {"kafka_password": self.kafka.admin_password, "database_password": "secret"}
        with running(Command("ingest", self.folder, config, secrets)) as daemon:
            yield daemon


def sample(number: int, total: int, devices: int = DEVICES) -> Telemetry:
    """Sample `number` of `total`: devices in turn, one second apart, all metrics different."""
    return Telemetry(
        time=END - timedelta(seconds=(total - number) // devices),
        device_id=f"host-{number % devices}",
        metrics={name: (number * 7 + index) % 1000 / 10 for index, name in enumerate(METRICS)},
    )


async def fill(bench: Bench, messages: int, topic: str = TOPICS[0]) -> None:
    """Produce `messages` samples through the producer of the fleet."""
    os.environ["CREDENTIALS_DIRECTORY"] = str(bench.folder)
    (bench.folder / "fill").write_text(bench.kafka.admin_password)
    config = KafkaConfig(
        bootstrap_servers=[bench.kafka.bootstrap_servers],
        username=bench.kafka.admin_username,
        credential="fill",
    )
    producer = Producer(config, "bench", max_batch_bytes=256 * 1024, compression=None)
    try:
        for start in range(0, messages, 20_000):
            samples = (sample(i, messages) for i in range(start, min(start + 20_000, messages)))
            records = [Record(topic, encode(item), item.key.encode()) for item in samples]
            failures = [error for error in await producer.send_all(records) if error]
            assert not failures, failures[0]
            say(f"filling the topic: {start + len(records)} of {messages} messages", end="\r")
        say("")
    finally:
        await producer.discard()


@dataclass
class Drain:
    """What draining a topic has cost; the rates are per second, from first to last commit."""

    rows: int
    seconds: float
    cpu_seconds: float
    peak_mib: float

    @property
    def rate(self) -> float:
        return self.rows / self.seconds


def drain(bench: Bench, rows: int, topic: str = TOPICS[0], *, newest: bool = False) -> Drain:
    """Let ingest drain the topic; with `newest` ask for the newest sample all the while."""
    stored = "prime_spark_ingest_rows_total"
    asked: list[float] = []
    with bench.ingest(topic) as ingest:
        # From the first committed row on: starting Python and joining the group is no throughput.
        first = eventually(lambda: ingest.metric(stored), 60, "first rows")
        began, used = time.monotonic(), cpu(ingest)
        while ingest.metric(stored) < rows:
            assert time.monotonic() - began < 1800, "not drained within half an hour"
            if newest:
                asked.append(ask_newest(bench))
            time.sleep(0.5 if newest else 0.05)
        seconds = time.monotonic() - began
        result = Drain(int(rows - first), seconds, cpu(ingest) - used, peak(ingest))
    assert bench.count() == rows, f"{bench.count()} rows instead of {rows}"
    if asked:
        asked.sort()
        say(
            f"newest sample asked {len(asked)} times meanwhile: median "
            f"{asked[len(asked) // 2] * 1000:.0f} ms, worst {asked[-1] * 1000:.0f} ms"
        )
    return result


def ask_newest(bench: Bench) -> float:
    """Return the seconds it takes to connect and get each device's newest value of a metric."""
    started = time.monotonic()
    sql(
        bench.postgres,
        "bench",
        "SELECT device_id, last(value, time) FROM device_metrics WHERE metric_name = 'cpu_percent'"
        " AND time > now() - interval '15 minutes' GROUP BY device_id",
    )
    return time.monotonic() - started


def cpu(ingest: Daemon) -> float:
    return ingest.cpu_seconds()


def peak(ingest: Daemon) -> float:
    """Return the most memory the process has had, in MiB."""
    assert ingest.process is not None
    for line in Path(f"/proc/{ingest.process.pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise AssertionError("no VmHWM")


# -- the other ways, without Kafka ----------------------------------------------------------------


async def connect(bench: Bench) -> Any:
    return await asyncpg.connect(
        host=bench.postgres.host,
        port=bench.postgres.port,
        user="prime_spark_ingest",
        password="secret",
        database="bench",
    )


def tuples(messages: int) -> list[tuple[object, ...]]:
    samples = (sample(number, messages) for number in range(messages))
    return [
        (s.time, s.device_id, name, value) for s in samples for name, value in s.metrics.items()
    ]


async def single(bench: Bench, rows: list[tuple[object, ...]]) -> float:
    """One INSERT per row, each its own transaction, prepared once."""
    connection = await connect(bench)
    statement = await connection.prepare(INSERT)
    started = time.monotonic()
    for row in rows:
        await statement.fetch(*row)
    seconds = time.monotonic() - started
    await connection.close()
    return len(rows) / seconds


async def many(bench: Bench, rows: list[tuple[object, ...]]) -> float:
    """Executemany, one transaction per batch."""
    connection = await connect(bench)
    size = BATCH_MESSAGES * len(METRICS)
    started = time.monotonic()
    for start in range(0, len(rows), size):
        await connection.executemany(INSERT, rows[start : start + size])
    seconds = time.monotonic() - started
    await connection.close()
    return len(rows) / seconds


async def copy(bench: Bench, messages: int) -> float:
    """COPY and upsert of ready-made bytes: the client has nothing to do but to send them."""
    batches = [
        b"".join(
            encode_rows(sample(number, messages)).data
            for number in range(start, min(start + BATCH_MESSAGES, messages))
        )
        for start in range(0, messages, BATCH_MESSAGES)
    ]
    connection = await connect(bench)
    await connection.execute(
        "CREATE TEMPORARY TABLE staging (LIKE device_metrics) ON COMMIT DELETE ROWS"
    )
    columns = ("time", "device_id", "metric_name", "value", "metadata")

    async def stream(data: bytes) -> AsyncIterator[bytes]:
        yield COPY_HEADER + data + COPY_TRAILER

    started = time.monotonic()
    for batch in batches:
        async with connection.transaction():
            await connection.copy_to_table(
                "staging", source=stream(batch), columns=columns, format="binary"
            )
            await connection.execute(
                "INSERT INTO device_metrics SELECT * FROM staging ON CONFLICT DO NOTHING"
            )
    seconds = time.monotonic() - started
    await connection.close()
    return messages * len(METRICS) / seconds


def say(text: str, end: str = "\n") -> None:
    sys.stdout.write(text + end)
    sys.stdout.flush()


def measure(bench: Bench, messages: int) -> tuple[float, float, float]:
    """Print what each way can do; return the rates of ingest, of COPY and of single rows.

    The last line printed gives all of it as pairs.
    """
    asyncio.run(fill(bench, messages))
    rows = messages * len(METRICS)
    bench.empty()
    alone = asyncio.run(single(bench, tuples(SINGLE_ROWS // len(METRICS))))
    say(f"one INSERT per row             {alone:10,.0f} rows/s")
    bench.empty()
    rate = asyncio.run(many(bench, tuples(messages // 5)))
    say(f"executemany                    {rate:10,.0f} rows/s")
    bench.empty()
    before = asyncio.run(copy(bench, messages))
    say(f"COPY and upsert, no Kafka      {before:10,.0f} rows/s")
    bench.empty()
    result = drain(bench, rows)
    say(
        f"prime-spark-ingest from Kafka  {result.rate:10,.0f} rows/s"
        f" = {result.rate / len(METRICS):,.0f} messages/s"
    )
    million = result.rows / 1e6
    say(
        f"  {result.cpu_seconds / million:.1f} CPU seconds per million rows,"
        f" {result.peak_mib:.0f} MiB at its peak"
    )
    bench.empty()
    after = asyncio.run(copy(bench, messages))
    say(f"COPY and upsert again          {after:10,.0f} rows/s")
    beside_telegraf(bench, messages, result.rate / len(METRICS))
    say(
        f"single_rows_per_second={alone:.0f} executemany_rows_per_second={rate:.0f}"
        f" copy_rows_per_second={max(before, after):.0f}"
        f" cpu_seconds_per_million_rows={result.cpu_seconds / million:.1f}"
        f" peak_mib={result.peak_mib:.0f}"
    )
    # The higher of the two, since the machine may have been busier in one of them.
    return result.rate, max(before, after), alone


# What each stores of a message, and what becomes of one that comes twice or is bad.
INGEST_KEEPS = "row per metric, unique key: each message once, a bad one dead-lettered"
LAYOUTS = {
    "wide": "row per message, no key: a repeated message is stored twice",
    "narrow": "row per metric, our table and key: acknowledged before it is stored, so a crash"
    " loses what it holds; a repeated message costs its whole batch",
}


def beside_telegraf(bench: Bench, messages: int, rate: float) -> None:
    """Print what ingest and Telegraf store of the same topic, each with what it promises."""
    if shutil.which("telegraf") is None:
        say("Telegraf: not installed, skipped")
        return
    say(f"prime-spark-ingest  {rate:10,.0f} messages/s  {INGEST_KEEPS}")
    for layout, promise in LAYOUTS.items():
        bench.empty()
        found = telegraf(bench, messages, layout)
        say(f"Telegraf, {layout:<8}  {found:10,.0f} messages/s  {promise}")


def telegraf(bench: Bench, messages: int, layout: str) -> float:
    """Drain the topic with Telegraf's kafka_consumer and postgresql plugins; return messages/s."""
    table = {"wide": "telegraf_metrics", "narrow": "device_metrics"}[layout]
    rows = messages * {"wide": 1, "narrow": len(METRICS)}[layout]
    config = bench.folder / f"telegraf-{layout}.conf"
    config.touch(0o600)
    config.write_text(telegraf_config(bench, layout, table, rows))
    process = subprocess.Popen(["telegraf", "--quiet", "--config", str(config)])

    def stored() -> int:
        there = sql(bench.postgres, "bench", f"SELECT to_regclass('{table}') IS NOT NULL AS yes")
        if not there[0]["yes"]:
            return 0
        return int(sql(bench.postgres, "bench", f"SELECT count(*) AS n FROM {table}")[0]["n"])

    try:
        first = eventually(stored, 60, "Telegraf's first rows")
        began = time.monotonic()
        eventually(lambda: stored() >= rows, 300, f"{rows} rows")
        return (rows - first) / rows * messages / (time.monotonic() - began)
    finally:
        process.terminate()
        process.wait()


def telegraf_config(bench: Bench, layout: str, table: str, rows: int) -> str:
    """Telegraf's configuration: JSON from Kafka into `rows` rows of `table`."""
    kafka = bench.kafka
    unpivot = """
[[processors.unpivot]]
  tag_key = "metric_name"
"""
    return f"""
[agent]
  flush_interval = "1s"
  metric_batch_size = 10000
  # All of them: what `unpivot` makes of a message no longer holds the consumer back, and a buffer
  # that is full throws the oldest away.
  metric_buffer_limit = {rows + 10_000}
  omit_hostname = true
[[inputs.kafka_consumer]]
  # The default is older than what Kafka 4 speaks.
  kafka_version = "2.8.0"
  brokers = ["{kafka.bootstrap_servers}"]
  topics = ["{TOPICS[0]}"]
  consumer_group = "telegraf-{layout}"
  offset = "oldest"
  max_undelivered_messages = 10000
  sasl_mechanism = "SCRAM-SHA-512"
  sasl_username = "{kafka.admin_username}"
  sasl_password = "{kafka.admin_password}"
  data_format = "json_v2"
  [[inputs.kafka_consumer.json_v2]]
    measurement_name = "{table}"
    timestamp_path = "time"
    timestamp_format = "2006-01-02T15:04:05Z07:00"
    [[inputs.kafka_consumer.json_v2.tag]]
      path = "device_id"
    [[inputs.kafka_consumer.json_v2.object]]
      path = "metrics"
{unpivot if layout == "narrow" else ""}
[[outputs.postgresql]]
  connection = "{bench.postgres.dsn.rsplit("/", 1)[0]}/bench"
  timestamp_column_type = "timestamp with time zone"
"""


def backlog(bench: Bench, messages: int) -> None:
    """Preload a topic, then drain it while the newest data are asked for."""
    bench.empty()
    asyncio.run(fill(bench, messages, BACKLOG))
    result = drain(bench, messages * len(METRICS), BACKLOG, newest=True)
    say(
        f"backlog: {messages:,} messages drained in {result.seconds:.0f} s"
        f" = {result.rate:,.0f} rows/s, {result.peak_mib:.0f} MiB at its peak"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--messages", type=int, default=100_000, help="messages to drain (100000)")
    parser.add_argument(
        "--backlog",
        type=int,
        nargs="?",
        const=1_200_000,
        help="also preload this many messages (1200000) and report how long the drain takes",
    )
    arguments = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as name,
        kafka_server() as kafka,
        postgres_server(DURABLE) as postgres,
    ):
        bench = Bench(Path(name), kafka, postgres)
        create_role(postgres, "prime_spark_ingest", "secret")
        create_database(postgres, "bench")
        owner = {"database": database_config(postgres, "bench", postgres.username)}
        secrets = {"database_password": postgres.password}
        Command("db", bench.folder, owner, secrets).answer("migrate")
        topics = {topic: {"partitions": 3} for topic in (*TOPICS, BACKLOG)}
        kafka_admin(kafka, bench.folder, topics=topics).answer("apply")
        rate, limit, alone = measure(bench, arguments.messages)
        if arguments.backlog:
            backlog(bench, arguments.backlog)
        say(
            f"rows_per_second={rate:.0f} ratio_to_copy_limit={rate / limit:.2f}"
            f" ratio_to_single_row={rate / alone:.1f}"
        )


if __name__ == "__main__":
    main()

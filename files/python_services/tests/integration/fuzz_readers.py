"""Who works beside ingest on what a hostile user telemetry sends: Airflow's task, the exporters.

The same user writes hashes `metrics:<device>` to Redis, which the task reads.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import jinja2
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from redis import Redis
from tests.integration.servers import PostgresServer, RedisServer

from api_support import ROLES, create_redis_users, role_defaults
from ingest_support import Pipeline
from prime_spark.config import load_config
from prime_spark.pipeline import Settings, sync
from support import Command, Daemon, create_role, database_config, free_port, kafka_config, sql

SECRET = "secret of the readers"
QUERIES = ROLES / "exporters/templates/stack/config/postgres-exporter/queries.yml.j2"
# A hash of each is written before every run of the task, with a new time.
GOOD = [f"redis-good-{number}" for number in range(5)]
FIELDS = {"cpu": 12.5, "memory": 0.0, "disk": 100.0}
DAY = timedelta(days=1)
Text = str | bytes


@dataclass
class HostileHash:
    """A hash, why its values are dropped, and those that are good nevertheless."""

    device: Text
    fields: dict[Text, Text]
    dropped: str = ""
    stored: dict[str, float] = field(default_factory=dict)


def hostile_hashes(source: random.Random, now: datetime) -> list[HostileHash]:
    moment = now.isoformat()
    pair: dict[Text, Text] = {"cpu": "1", "memory": "2"}
    hashes = [
        HostileHash(name, {"time": moment, **pair}, "device name")
        for name in ("", "-x", "x" * 129, "a b", "ü", "h\n", "h\0", "../../x", "'; DROP TABLE x")
    ]
    times: dict[Text, str] = dict.fromkeys(NO_TIMES, "time")
    for year in (1, 2, 1582, 1970, 1999):
        times[datetime(year, 1, 1, tzinfo=UTC).isoformat()] = "past"
    times[(now - 181 * DAY).isoformat()] = "past"
    times[(now + DAY / 12).isoformat()] = "future"
    times[datetime.max.replace(tzinfo=UTC).isoformat()] = "future"
    for number, (text, reason) in enumerate(times.items()):
        hashes.append(HostileHash(f"redis-time-{number}", {"time": text, **pair}, reason))
    hashes.append(HostileHash("redis-time-none", dict(pair), "time"))
    for number in range(200):
        noise = {name: source.randbytes(source.randrange(1, 300)) for name in ("time", "cpu", "x")}
        hashes.append(HostileHash(f"redis-noise-{number}", {**noise}, "time"))
    for reason, values in (("not a number", NO_NUMBERS), ("out of range", TOO_MUCH)):
        for number, text in enumerate(values):
            name = f"redis-{reason.replace(' ', '-')}-{number}"
            some: dict[Text, Text] = {"time": moment, "cpu": text, "disk": "7"}
            hashes.append(HostileHash(name, some, reason, {"disk_percent": 7.0}))
    many: dict[Text, Text] = {f"field {number}": "x" * 20 for number in range(20_000)}
    many |= {"time": moment, "CPU": "1", b"\xff": "1", "cpu": "-0", "memory": "1E+2"}
    stored = {"cpu_percent": -0.0, "memory_percent": 100.0}
    hashes.append(HostileHash("redis-many", many, stored=stored))
    # Whose name is no text; the task never sees what it holds.
    hashes.append(HostileHash(b"\xff\xfe", {"time": moment, "x": "1"}))
    return hashes


NO_TIMES: tuple[Text, ...] = (
    "", "now", "-infinity", "infinity", "NaN", "1e9", "0000-01-01T00:00:00Z", "9" * 5000, b"\xff",
    "-0001-01-01T00:00:00Z", "10000-01-01T00:00:00Z", "9999-12-31T23:59:59-23:59",
    "0001-01-01T00:00:00+23:59", "2026-03-01T00:00:00", "2026-02-30T00:00:00Z", "\0",
)  # fmt: skip
NO_NUMBERS: tuple[Text, ...] = (
    "", "NaN", "Infinity", "-Infinity", "1e309", "-1e309", "1e99999999999", "9" * 100_000, "1_0",
    " 1", "0x10", "true", "null", "\N{ARABIC-INDIC DIGIT ONE}", "\0", b"\xff\xfe", "01", "+1", ".5",
)  # fmt: skip
TOO_MUCH: tuple[Text, ...] = ("-0.1", "100.00001", "1e300", "-5e-324", "9007199254740993")


class Readers:
    """The task, the queries of the exporter of PostgreSQL, and our exporter of Kafka."""

    def __init__(self, path: Pipeline, redis: RedisServer, folder: Path, seed: int) -> None:
        self.path = path
        self._redis = redis
        self._now = datetime.now(UTC)
        self._hostile = hostile_hashes(random.Random(seed + 2), self._now)
        self._expected: dict[tuple[str, str, datetime], float] = {}
        self._config = folder / "pipeline.json"
        block = {"host": redis.host, "port": redis.port, "username": "pipeline"}
        database = database_config(path.postgres, path.database, "prime_spark_pipeline")
        config = {
            "redis": {**block, "credential": "readers_password"},
            "database": {**database, "credential": "readers_password"},
        }
        self._config.write_text(json.dumps(config))
        create_redis_users(redis, "telemetry", "pipeline", password=SECRET)

    def look(self, sentinels: Mapping[str, datetime]) -> None:
        """Have each do its work, and look at what comes of it; `sentinels` are stored."""
        moment = datetime.now(UTC)
        self._run_task(moment)
        self._ask_database({**dict(list(sentinels.items())[-3:]), GOOD[0]: moment}, len(sentinels))

    def _run_task(self, moment: datetime) -> None:
        good: list[tuple[Text, Mapping[Text, Text]]] = [
            (name, {"time": moment.isoformat(), **{key: str(FIELDS[key]) for key in FIELDS}})
            for name in GOOD
        ]
        hostile = [(one.device, one.fields) for one in self._hostile]
        server = self._redis
        with Redis(server.host, server.port, username="telemetry", password=SECRET) as telemetry:
            for name, fields in good + hostile:
                key = b"metrics:" + (name if isinstance(name, bytes) else name.encode())
                telemetry.hset(key, mapping=fields)  # type: ignore[arg-type]
        before = len(self._expected)
        for name in GOOD:
            for key, value in FIELDS.items():
                self._expected[name, f"{key}_percent", moment] = value
        dropped: Counter[str] = Counter()
        for one in self._hostile:
            known = len(FIELDS.keys() & one.fields.keys())
            dropped[one.dropped] += known - len(one.stored)
            for metric, value in one.stored.items():
                self._expected[str(one.device), metric, self._now] = value
        summary = sync(load_config(self._config, Settings))
        assert summary.dropped == {reason: n for reason, n in dropped.items() if n}, summary
        assert summary.inserted == len(self._expected) - before, summary
        query = "SELECT * FROM device_metrics WHERE device_id LIKE 'redis-%'"
        rows = {
            (row["device_id"], row["metric_name"], row["time"]): row["value"]
            for row in self.path.rows(query)
        }
        wrong = rows.items() ^ self._expected.items()
        assert not wrong, sorted(map(str, wrong))[:20]

    def _ask_database(self, newest: Mapping[str, datetime], devices: int) -> None:
        text = jinja2.Template(QUERIES.read_text()).render(
            __exporters_devices=[*newest, "never-heard-of"]
        )
        answers = asyncio.run(self._answers(yaml.safe_load(text)))
        assert all(
            math.isfinite(value)
            for rows in answers.values()
            for row in rows
            for value in row.values()
            if not isinstance(value, str)
        ), answers
        seen = {
            row["device_id"]: float(row["timestamp_seconds"])
            for row in answers["prime_spark_device_newest_sample"]
        }
        wanted = {name: moment.timestamp() for name, moment in newest.items()}
        assert seen == pytest.approx(wanted, abs=0.001), f"{seen}, not {wanted}"
        (unexpected,) = answers["prime_spark_unexpected"]
        assert min(devices, 1000) - len(newest) < unexpected["devices"] <= 1000, unexpected

    async def _answers(self, queries: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
        server = self.path.postgres
        connection = await asyncpg.connect(
            host=server.host,
            port=server.port,
            user="prime_spark_exporter",
            password=SECRET,
            database=self.path.database,
        )
        try:
            return {
                name: [dict(row) for row in await connection.fetch(entry["query"])]
                for name, entry in queries.items()
            }
        finally:
            await connection.close()


def create_reader_roles(postgres: PostgresServer) -> None:
    """The database users with their memberships; before the migrations, which grant them rights."""
    for name in ("prime_spark_reader", "prime_spark_pipeline", "prime_spark_exporter"):
        create_role(postgres, name, SECRET)
    for name, roles in role_defaults("timescale")["timescale_memberships"].items():
        sql(postgres, postgres.database, f"GRANT {', '.join(roles)} TO {name}")


def kafka_exporter(path: Pipeline, folder: Path) -> Command:
    """Our exporter of Kafka, as the administrator."""
    folder.mkdir()
    config = {
        "kafka": kafka_config(path.kafka, path.kafka.admin_username),
        "http": {"host": "127.0.0.1", "port": free_port()},
        "interval_seconds": 2,
    }
    return Command("kafka-exporter", folder, config, {"kafka_password": path.kafka.admin_password})


def exported(exporter: Daemon, name: str, path: Pipeline) -> dict[int, float]:
    """Return a metric of the telemetry topic, by partition."""
    return {
        int(sample.labels["partition"]): sample.value
        for family in text_string_to_metric_families(exporter.get("/metrics")[1])
        for sample in family.samples
        if sample.name == name and sample.labels.get("topic") == path.telemetry
    }

"""prime-spark-db maintain: rollups and retention in a real TimescaleDB."""

from __future__ import annotations

import json
import random
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.integration.servers import PostgresServer, postgres_server

from support import Command, create_database, create_role, database_config, eventually, sql

NOW = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
ROLLUPS = {"device_metrics_5m": "5 minutes", "device_metrics_1h": "1 hour"}
LOCK_KEY = 0x5052494D46


def replace_user(server: PostgresServer, username: str, password: str) -> Any:
    """The server as `sql` wants it, for another user than the superuser."""
    return SimpleNamespace(host=server.host, port=server.port, username=username, password=password)


def quarters(number: int, seed: int) -> list[float]:
    source = random.Random(seed)
    return [source.randrange(400) / 4 for _ in range(number)]


class Database:
    """A migrated database and the command that maintains it."""

    def __init__(self, server: PostgresServer, folder: Path, name: str) -> None:
        create_role(server, "prime_spark_ingest", "ingest secret")
        create_database(server, name)
        self.server, self.name = server, name
        config = {"database": database_config(server, name, server.username)}
        self.command = Command("db", folder, config, {"database_password": server.password})
        self.command.answer("migrate")

    def sql(self, query: str, *arguments: object) -> list[Any]:
        return sql(self.server, self.name, query, *arguments)

    def maintain(self, **settings: int) -> dict[str, Any]:
        self.command.config["maintenance"] = settings
        return self.command.answer("maintain")

    def store(self, start: datetime, hours: int, device: str = "host-1", seed: int = 1) -> int:
        """Store a sample a minute; values are quarters, so that any order sums up the same."""
        times = [start + timedelta(minutes=n, seconds=seed) for n in range(hours * 60)]
        values = quarters(len(times), seed)
        self.sql(
            "INSERT INTO device_metrics (time, device_id, metric_name, value)"
            " SELECT t, $1, 'cpu_percent', v"
            " FROM unnest($2::timestamptz[], $3::float8[]) AS x(t, v)",
            device,
            times,
            values,
        )
        return len(times)

    def rollup(self, table: str) -> list[Any]:
        return self.sql(f"SELECT * FROM {table} ORDER BY bucket, device_id, metric_name")

    def direct(self, width: str) -> list[Any]:
        return self.sql(
            f"SELECT time_bucket('{width}', time) AS bucket, device_id, metric_name,"
            " count(*) AS samples, avg(value) AS average, min(value) AS minimum,"
            " max(value) AS maximum FROM device_metrics GROUP BY 1, 2, 3"
            " ORDER BY bucket, device_id, metric_name"
        )

    def check_rollups(self) -> None:
        for table, width in ROLLUPS.items():
            expected = self.direct(width)
            assert expected
            assert self.rollup(table) == expected


@pytest.fixture
def database(postgres: PostgresServer, tmp_path: Path, request: pytest.FixtureRequest) -> Database:
    return Database(postgres, tmp_path, request.node.name)


def test_rollups_equal_direct_aggregates(database: Database) -> None:
    database.store(NOW - timedelta(hours=30), 30)
    database.store(NOW - timedelta(hours=5), 5, "host-2", seed=2)
    done = database.maintain()
    assert (done["licence"], done["hours"], done["pending"]) == ("apache", 30, 0)
    database.check_rollups()

    nothing = database.maintain()
    assert (nothing["changed"], nothing["hours"], nothing["rows"]) == (False, 0, 0)


def test_late_rows_are_rolled_up_again(database: Database) -> None:
    database.store(NOW - timedelta(hours=50), 50)
    database.maintain()
    database.store(NOW - timedelta(hours=40), 1, seed=7)  # late by more than a day
    done = database.maintain()
    assert done["hours"] == 1
    database.check_rollups()


def test_who_stores_rows_needs_no_right_on_the_log(database: Database) -> None:
    role = database.sql(
        "SELECT has_table_privilege('prime_spark_ingest', 'rollup_log', 'INSERT') AS log,"
        " has_table_privilege('prime_spark_ingest', 'device_metrics', 'INSERT') AS rows"
    )[0]
    assert (role["log"], role["rows"]) == (False, True)
    as_ingest = replace_user(database.server, "prime_spark_ingest", "ingest secret")
    sql(
        as_ingest,
        database.name,
        "INSERT INTO device_metrics VALUES (now(), 'host-1', 'cpu_percent', 1, NULL)",
    )
    assert database.maintain()["hours"] == 1
    database.check_rollups()


def test_one_run_is_bounded_and_the_next_continues(database: Database) -> None:
    database.store(NOW - timedelta(hours=9), 9)
    first = database.maintain(max_hours=4)
    assert first["hours"] == 4
    assert first["pending"] == 5
    newest = database.sql("SELECT max(bucket) AS newest FROM device_metrics_1h")[0]["newest"]
    assert newest >= NOW - timedelta(hours=1)
    database.maintain(max_hours=4)
    last = database.maintain(max_hours=4)
    assert (last["hours"], last["pending"]) == (1, 0)
    database.check_rollups()


def test_retention_drops_old_chunks_and_keeps_their_rollups(database: Database) -> None:
    # From a midnight on, so that all of it lies in one chunk, which is a day.
    old = NOW.replace(hour=0) - timedelta(days=40)
    kept = database.store(NOW - timedelta(hours=3), 3)
    database.store(old, 2)
    # Nothing is dropped before it is rolled up.
    assert database.maintain(max_hours=1)["dropped"] == 0
    done = database.maintain()
    assert done["dropped"] == 1
    assert database.sql("SELECT count(*) AS n FROM device_metrics")[0]["n"] == kept
    day = "WHERE bucket < now() - INTERVAL '30 days'"
    before = database.sql(f"SELECT * FROM device_metrics_5m {day} ORDER BY bucket")
    assert sum(row["samples"] for row in before) == 120

    # Rows later than that are added to what was rolled up, once Kafka can bring none of them again.
    database.store(old, 1, seed=3)
    database.store(old, 1, "host-2", seed=4)
    waits = database.maintain()
    assert (waits["late"], waits["waiting"], waits["dropped"]) == (0, 1, 0)
    assert database.sql(f"SELECT * FROM device_metrics_5m {day} ORDER BY bucket") == before
    # They hold up nothing else.
    database.store(NOW - timedelta(days=35), 1)
    assert database.maintain()["dropped"] == 1
    late = database.maintain(late_days=0)
    assert (late["late"], late["waiting"], late["dropped"]) == (1, 0, 1)
    merged = database.sql(
        "SELECT device_id, sum(samples)::int AS n, min(minimum) AS low, max(maximum) AS high,"
        " sum(samples * average) AS total FROM device_metrics_1h"
        f" {day} AND bucket < now() - INTERVAL '38 days' GROUP BY 1 ORDER BY 1"
    )
    assert [(row["device_id"], row["n"]) for row in merged] == [("host-1", 180), ("host-2", 60)]
    values = [v for n, seed in ((120, 1), (60, 3)) for v in quarters(n, seed)]
    assert merged[0]["total"] == pytest.approx(sum(values))
    assert (merged[0]["low"], merged[0]["high"]) == (min(values), max(values))
    before = database.sql(f"SELECT * FROM device_metrics_5m {day} ORDER BY bucket")
    assert not database.maintain(late_days=0)["changed"]
    assert database.sql(f"SELECT * FROM device_metrics_5m {day} ORDER BY bucket") == before

    # Rollups have a retention of their own.
    gone = database.maintain(raw_days=1, rollup_5m_days=30, rollup_1h_days=365)
    assert gone["dropped"] >= 1
    assert database.sql(f"SELECT * FROM device_metrics_5m {day}") == []
    assert database.sql(f"SELECT sum(samples) AS n FROM device_metrics_1h {day}")[0]["n"] == 300


def test_retention_catches_up_with_more_chunks_than_the_server_can_lock(tmp_path: Path) -> None:
    """As many days as fail at once with fewer locks; in use they are thousands."""
    with postgres_server({"max_locks_per_transaction": "10", "max_connections": "20"}) as server:
        database = Database(server, tmp_path, "many_days")
        start = NOW.replace(hour=0) - timedelta(days=175)
        for day in range(140):
            moment = start + timedelta(days=day)
            database.sql(
                "INSERT INTO device_metrics VALUES ($1, 'host-1', 'cpu_percent', 1, NULL)", moment
            )
        done = database.maintain()
        assert (done["hours"], done["pending"], done["dropped"]) == (140, 0, 140)
        assert database.sql("SELECT count(*) AS n FROM device_metrics_1h")[0]["n"] == 140


def test_the_zero_of_a_clock_does_not_stop_retention(database: Database) -> None:
    for moment in ("0001-01-01 00:00+00", "1000-01-01 BC"):
        database.sql(
            "INSERT INTO device_metrics VALUES"
            f" (TIMESTAMPTZ '{moment}', 'host-1', 'cpu_percent', 1, NULL)"
        )
    database.sql("INSERT INTO rollup_log VALUES ('-infinity')")
    database.store(NOW - timedelta(days=40), 1)
    done = database.maintain()
    assert (done["pending"], done["dropped"] >= 3) == (0, True)
    assert database.sql("SELECT count(*) AS n FROM device_metrics")[0]["n"] == 0


def test_values_too_large_for_an_average_stop_no_rollup(database: Database) -> None:
    """A sum of their squares is beyond what a float can hold."""
    for second, value in enumerate((1.7e308, -1.7e308, 1.7e308, 5e-324, 3.0)):
        database.sql(
            "INSERT INTO device_metrics VALUES ($1, 'host-1', 'cpu_percent', $2, NULL)",
            NOW - timedelta(hours=2, seconds=-second),
            value,
        )
    assert database.maintain()["pending"] == 0
    (hour,) = database.rollup("device_metrics_1h")
    assert (hour["samples"], hour["average"], hour["maximum"]) == (5, 1.5, 1.7e308)


def test_killed_run_is_continued(database: Database) -> None:
    """kill -9 in the middle: the hour under way rolls back, the next run takes it up."""
    database.store(NOW - timedelta(hours=200), 200)
    database.command.config["maintenance"] = {}
    run = subprocess.Popen(
        [*database.command.arguments(), "maintain"], env=database.command.environment()
    )
    eventually(lambda: database.sql("SELECT count(*) AS n FROM device_metrics_1h")[0]["n"])
    run.kill()
    run.wait()
    eventually(
        lambda: (
            not database.sql(
                "SELECT 1 FROM pg_locks JOIN pg_database d ON d.oid = database"
                " WHERE locktype = 'advisory' AND datname = current_database()"
            )
        )
    )
    left = database.sql("SELECT count(DISTINCT hour) AS n FROM rollup_log")[0]["n"]
    assert 0 < left < 200
    assert database.maintain()["hours"] == left
    database.check_rollups()


def test_two_runs_exclude_each_other(database: Database) -> None:
    database.store(NOW - timedelta(hours=100), 100)
    database.command.config["maintenance"] = {}
    runs = [
        subprocess.Popen(
            [*database.command.arguments(), "maintain"],
            env=database.command.environment(),
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    answers = [json.loads(run.communicate(timeout=60)[0]) for run in runs]
    assert sum(answer["hours"] for answer in answers) == 100
    database.check_rollups()


def test_figures_for_the_metrics(database: Database, tmp_path: Path) -> None:
    database.store(NOW - timedelta(hours=2), 2)
    database.command.answer("maintain", "--metrics", str(tmp_path / "db.prom"))
    text = (tmp_path / "db.prom").read_text()
    assert "prime_spark_maintenance_rolled_hours 2\n" in text
    assert "prime_spark_maintenance_pending_hours 0\n" in text

"""prime-spark-db against a real PostgreSQL with TimescaleDB."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from tests.integration.servers import PostgresServer

from support import Command, create_database, create_role, database_config, sql

MIGRATIONS = ["0001_initial", "0002_memory", "0003_rollups", "0004_late", "0005_memory_owner"]


@pytest.fixture
def db(postgres: PostgresServer, tmp_path: Path, request: pytest.FixtureRequest) -> Command:
    name = request.node.name
    create_database(postgres, name)
    config = {"database": database_config(postgres, name, postgres.username)}
    return Command("db", tmp_path, config, {"database_password": postgres.password})


def test_migrates_once(postgres: PostgresServer, db: Command) -> None:
    create_role(postgres, "prime_spark_ingest", "x")
    create_role(postgres, "prime_spark_reader", "x")
    name = db.config["database"]["name"]

    assert db.answer("status") == {
        "applied": [],
        "pending": MIGRATIONS,
        "grants": [],
        "changed": False,
    }
    predicted = db.answer("migrate", "--check")
    assert predicted["changed"]
    assert predicted["pending"] == MIGRATIONS
    assert sql(postgres, name, "SELECT to_regclass('device_metrics') AS t")[0]["t"] is None

    first = db.answer("migrate")
    assert first["changed"]
    assert first["applied"] == MIGRATIONS
    assert first["grants"] == predicted["grants"]
    assert "INSERT on device_metrics to prime_spark_ingest" in first["grants"]
    assert "INSERT on device_metrics to prime_spark_reader" not in first["grants"]

    nothing = {"applied": [], "pending": [], "grants": [], "changed": False}
    assert db.answer("migrate") == nothing
    assert db.answer("migrate", "--check") == nothing
    assert db.answer("status")["applied"] == MIGRATIONS

    tables = sql(postgres, name, "SELECT hypertable_name FROM timescaledb_information.hypertables")
    assert {row["hypertable_name"] for row in tables} == {
        "device_metrics",
        "ai_inference_results",
        "api_events",
        "device_metrics_5m",
        "device_metrics_1h",
    }


def test_looking_does_not_need_the_extension_of_the_image(
    postgres: PostgresServer, db: Command
) -> None:
    """After a new image a run updates the extension; what is predicted before has to work."""
    db.answer("migrate")
    name = db.config["database"]["name"]
    older = "UPDATE pg_extension SET extversion = '2.19.2' WHERE extname = 'timescaledb'"
    sql(postgres, name, older, settings={"timescaledb.disable_load": "on"})
    assert db.answer("status")["applied"] == MIGRATIONS
    assert not db.answer("migrate", "--check")["changed"]
    assert "could not access file" in db.run("migrate", expect=1).stderr


def test_grants_follow_a_role_that_comes_later(postgres: PostgresServer, db: Command) -> None:
    name = db.config["database"]["name"]
    create_role(postgres, "prime_spark_reader", "x")
    db.answer("migrate")
    sql(postgres, name, "REVOKE SELECT ON device_metrics FROM prime_spark_reader")
    assert db.answer("migrate", "--check")["grants"] == [
        "SELECT on device_metrics to prime_spark_reader"
    ]
    assert db.answer("migrate")["changed"]
    assert not db.answer("migrate")["changed"]


def test_concurrent_runs_apply_each_migration_once(db: Command) -> None:
    runs = [
        subprocess.Popen(
            [*db.arguments(), "migrate"],
            env=db.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    outputs = [(*run.communicate(timeout=60), run.returncode) for run in runs]
    assert [status for *_, status in outputs] == [0] * 4, outputs
    applied = [json.loads(stdout)["applied"] for stdout, *_ in outputs]
    assert sorted(applied) == [[], [], [], MIGRATIONS]


def test_changed_and_unknown_migrations_are_refused(postgres: PostgresServer, db: Command) -> None:
    name = db.config["database"]["name"]
    db.answer("migrate")
    sql(
        postgres,
        name,
        "UPDATE schema_migrations SET checksum = 'other' WHERE name = '0001_initial'",
    )
    assert (
        "0001_initial was changed after it had been applied" in db.run("migrate", expect=1).stderr
    )
    sql(
        postgres,
        name,
        "UPDATE schema_migrations SET name = '9999_future' WHERE name = '0001_initial'",
    )
    assert "does not know: 9999_future" in db.run("migrate", expect=1).stderr


def test_absent_database_is_one_clear_line(postgres: PostgresServer, tmp_path: Path) -> None:
    config = {"database": {**database_config(postgres, "x", "x"), "port": 9}, "wait_seconds": 0.3}
    db = Command("db", tmp_path, config, {"database_password": "x"})
    stderr = db.run("migrate", expect=1).stderr
    assert stderr.startswith(f"error: database {postgres.host}:9: ")
    assert len(stderr.splitlines()) == 1


def test_logins_are_tried_with_passwords_from_standard_input(
    postgres: PostgresServer, db: Command
) -> None:
    create_role(postgres, "someone", "the right one")
    attempts = {"someone": ["the right one", "wrong"], "nobody": ["wrong"]}
    assert db.answer("login", stdin=json.dumps(attempts)) == {
        "accepted": {"someone": [True, False], "nobody": [False]}
    }
    refused = db.run("login", expect=1, stdin="not JSON").stderr
    assert refused.startswith("error: standard input: expected JSON")

"""What the role timescale makes of users and databases, on a real server, and what it repeats."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template

from tests.integration.images import postgres
from tests.integration.servers import PostgresServer, postgres_server

ROLE = Path(__file__).resolve().parents[3] / "roles" / "timescale"
PASSWORD = "a password of the tests"
DEFAULTS: dict[str, Any] = yaml.safe_load((ROLE / "defaults" / "main.yml").read_text())
USERS = DEFAULTS["timescale_users"]
DATABASES = {"airflow": "prime_spark_airflow", "prime_spark": "prime_spark_reader"}


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with postgres_server() as running:
        predicted = converge(running, check=True)
        assert predicted == converge(running, check=True), "a check changes something"
        done = converge(running)
        # What can be told of a database that is not there yet.
        assert set(predicted) <= set(done)
        yield running


def converge(server: PostgresServer, *, check: bool = False) -> list[str]:
    """Run the role's statements as the role does; return the changes that they tell."""
    variables = {
        **DEFAULTS,
        "timescale_users": dict.fromkeys(USERS, PASSWORD),
        "timescale_owner_password": PASSWORD,
        "timescale_superuser_password": server.password,
        "__timescale_check": check,
    }
    templar = Templar(loader=DataLoader(), variables=variables)
    template = (ROLE / "templates" / "bootstrap" / "users.sql.j2").read_text()
    server._write("users.sql", str(templar.template(trust_as_template(template))))
    options = ["--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--set", "ON_ERROR_STOP=1"]
    environment = [
        f"PGHOST={server.host}",
        f"PGPORT={server.port}",
        f"PGUSER={server.username}",
        f"PGPASSWORD={server.password}",
    ]
    file = f"{server.data_path}/users.sql"
    said = server.run("env", *environment, "psql", *options, "--file", file)
    return [line.removeprefix("changed: ") for line in said.splitlines() if line]


def fetch(server: PostgresServer, user: str, database: str, *statements: str) -> Any:
    """Run statements on one connection of a user; return the value of the last."""
    password = server.password if user == server.username else PASSWORD
    dsn = f"postgresql://{user}:{password}@{server.host}:{server.port}/{database}"
    return postgres.fetch(dsn, *statements)


def test_a_second_run_changes_nothing(server: PostgresServer) -> None:
    assert converge(server, check=True) == []
    assert converge(server) == []


@pytest.mark.parametrize("database", DATABASES)
def test_nobody_makes_large_objects(server: PostgresServer, database: str) -> None:
    for call in (
        "lo_creat(-1)",
        "lo_create(0)",
        "lo_from_bytea(0, 'x')",
        "lo_put(1, 0, 'x')",
        "lowrite(0, 'x')",
        "pg_logical_emit_message(false, 'x', 'x')",
    ):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            fetch(server, DATABASES[database], database, f"SELECT {call}")


def test_statements_are_bounded_but_the_owner_s(server: PostgresServer) -> None:
    asked = (
        "SELECT current_setting('statement_timeout') || ' ' || current_setting('temp_file_limit')"
    )
    for user in USERS:
        seconds, disk = fetch(server, user, DATABASES_OF.get(user, "prime_spark"), asked).split()
        assert seconds != "0", user
        assert disk != "-1", user
    assert fetch(server, "prime_spark_owner", "prime_spark", asked) == "0 -1"


DATABASES_OF = {owner: name for name, owner in DATABASES.items()}


def test_nobody_fills_the_disk_by_sorting(server: PostgresServer) -> None:
    reader = (server, "prime_spark_reader", "prime_spark")
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        fetch(*reader, "SET temp_file_limit = -1", "SELECT 1")
    fetch(
        server, "postgres", "prime_spark", ALTER.format("SET temp_file_limit = '1MB'"), "SELECT 1"
    )
    with pytest.raises(asyncpg.ConfigurationLimitExceededError):
        fetch(*reader, "SET work_mem = '64kB'", f"SELECT max(n) FROM ({SORTED}) AS s")
    assert converge(server) == ["temp_file_limit of prime_spark_reader"]


ALTER = "ALTER ROLE prime_spark_reader {}"
SORTED = "SELECT n::text FROM generate_series(1, 200000) AS n ORDER BY md5(n::text) OFFSET 1"


def test_what_was_changed_by_hand_is_told_and_put_back(server: PostgresServer) -> None:
    fetch(
        server,
        "postgres",
        "prime_spark",
        ALTER.format("RESET statement_timeout"),
        ALTER.format("SET work_mem = '1GB'"),
        "GRANT EXECUTE ON FUNCTION lo_create(oid) TO PUBLIC",
        "SELECT 1",
    )
    changes = [
        "statement_timeout of prime_spark_reader",
        "no work_mem of prime_spark_reader",
        "who may write large objects in prime_spark",
    ]
    assert converge(server, check=True) == changes
    assert converge(server) == changes
    assert converge(server, check=True) == []

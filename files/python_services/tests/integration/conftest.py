"""Real servers for the service tests, and the commands of the distribution as processes."""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[4]
if str(REPOSITORY) not in sys.path:
    sys.path.insert(0, str(REPOSITORY))

from tests.integration.servers import (  # noqa: E402
    KafkaServer,
    LlamaServer,
    PostgresServer,
    RedisServer,
    kafka_server,
    llama_server,
    postgres_server,
    redis_server,
)

from support import Command, create_database, create_role, database_config  # noqa: E402

# The files that take longest, the longest first: a worker that begins with one of them last keeps
# all others waiting.
LONGEST = (
    "test_hook",
    "test_hook_browser",
    "test_ingest_faults",
    "test_ingest_fuzz",
    "test_hostile_http",
    "test_dag",
    "test_tasks",
    "test_dispatcher",
    "test_telemetry",
    "test_publisher",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.services)
    items.sort(key=lambda item: [item.path.stem != name for name in LONGEST])


@pytest.fixture(scope="session")
def kafka() -> Iterator[KafkaServer]:
    with kafka_server() as server:
        yield server


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    with postgres_server() as server:
        yield server


@pytest.fixture(scope="session")
def redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest.fixture
def pipeline_database(
    postgres: PostgresServer, tmp_path: Path, request: pytest.FixtureRequest
) -> str:
    """The name of a migrated database, empty, that the pipeline's user may write to."""
    name: str = request.node.name
    create_role(postgres, "prime_spark_pipeline", "pipeline secret")
    create_database(postgres, name)
    owner = {"database": database_config(postgres, name, postgres.username)}
    Command("db", tmp_path, owner, {"database_password": postgres.password}).answer("migrate")
    return name


@pytest.fixture(scope="session")
def llama() -> Iterator[LlamaServer]:
    with llama_server() as server:
        yield server


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    """Show the servers' last words under a failed test."""
    report = yield
    if report.failed:
        for value in getattr(item, "funcargs", {}).values():
            if isinstance(value, KafkaServer | LlamaServer | PostgresServer | RedisServer):
                state = "running" if value.running else "not running"
                report.sections.append((f"{value.image} ({state})", value.log_tail(15)))
    return report

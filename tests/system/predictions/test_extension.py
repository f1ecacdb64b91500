"""TimescaleDB's extension follows its image: predicted, applied, and nothing left to do."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.system.fleet.fleet import connect, members, query, shell
from tests.system.predictions.record import play

(DATABASE,) = members("timescale")
TASK = "timescale : Apply users and database"
SCHEMA = ["--tags", "timescale_schema"]
# The release before that of the lab's image, whose library is not in the image.
BEFORE = "2.19.2"


def without_library(sql: str) -> str:
    """What a session answers that does not load the extension's library."""
    script = (
        "docker compose --project-name timescale exec -T --user postgres"
        " --env PGOPTIONS='-c timescaledb.disable_load=on' timescale"
        ' psql --no-psqlrc --quiet --tuples-only --no-align --set ON_ERROR_STOP=1 --command "$1"'
        " prime_spark"
    )
    return shell(connect(DATABASE), script, sql)


def record(version: str) -> None:
    """Have the database say that its extension is of another release."""
    without_library(
        f"UPDATE pg_extension SET extversion = '{version}' WHERE extname = 'timescaledb';"
        f" UPDATE _timescaledb_catalog.metadata SET value = '{version}'"
        " WHERE key = 'timescaledb_version'"
    )


@pytest.fixture
def version() -> Iterator[str]:
    """The release of the image, which the database has again afterwards."""
    recorded = "SELECT extversion FROM pg_extension WHERE extname = 'timescaledb'"
    current = without_library(recorded)
    yield current
    if without_library(recorded) != current:
        record(current)


def test_the_database_gets_the_extension_of_a_new_image(version: str) -> None:
    record(BEFORE)
    with pytest.raises(AssertionError, match="could not access file"):
        query("SELECT 1 AS one")
    predicted = play("--check", *SCHEMA)
    applied = play(*SCHEMA)
    assert predicted == applied == {(DATABASE, TASK)}
    found = query("SELECT extversion FROM pg_extension WHERE extname = 'timescaledb'")
    assert found == [{"extversion": version}]
    assert play(*SCHEMA) == set()

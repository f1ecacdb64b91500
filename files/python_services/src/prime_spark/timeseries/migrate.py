"""Schema migrations: numbered SQL files, applied once each, under an advisory lock."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

_LOCK_KEY = 0x5052494D45  # "PRIME"

# What a service's role may do, granted again at every run: roles may be created later.
_EVENT_TABLES = ("device_metrics", "ai_inference_results", "api_events")
_READABLE = (*_EVENT_TABLES, "device_metrics_5m", "device_metrics_1h", "rollup_floor")
GRANTS: dict[str, dict[str, tuple[str, ...]]] = {
    "prime_spark_api": {
        "memory": ("SELECT", "INSERT", "UPDATE", "DELETE"),
        "memory_usage": ("SELECT",),
    },
    "prime_spark_ingest": dict.fromkeys(_EVENT_TABLES, ("SELECT", "INSERT")),
    "prime_spark_pipeline": {"device_metrics": ("SELECT", "INSERT")},
    # Not the memory: its values are their users' own.
    "prime_spark_reader": dict.fromkeys(_READABLE, ("SELECT",)),
}
# Ingest stages its batches in temporary tables.
_TEMPORARY_FOR = ("prime_spark_ingest",)


class MigrationError(Exception):
    """The database and the migrations of this release do not fit together."""


@dataclass(frozen=True)
class Migration:
    """One SQL file; `checksum` is the SHA-256 of its text."""

    name: str
    sql: str

    @property
    def checksum(self) -> str:
        """Identifies the text that was applied."""
        return hashlib.sha256(self.sql.encode()).hexdigest()


@dataclass(frozen=True)
class Result:
    """What a run did, or with `check` would do."""

    applied: list[str]
    pending: list[str]
    grants: list[str]
    changed: bool


def packaged_migrations() -> list[Migration]:
    """Return the migrations of this release, in order."""
    folder = resources.files("prime_spark.timeseries.migrations")
    return [
        Migration(entry.name.removesuffix(".sql"), entry.read_text(encoding="utf-8"))
        for entry in sorted(folder.iterdir(), key=lambda entry: entry.name)
        if entry.name.endswith(".sql")
    ]


async def migrate(
    connection: Any, migrations: Sequence[Migration], *, check: bool = False
) -> Result:
    """Apply what is missing, each migration in its own transaction.

    Concurrent runs wait for each other. Raises MigrationError when an applied migration's text
    has changed, or when the database has one this release does not know.
    """
    await connection.execute("SELECT pg_advisory_lock($1)", _LOCK_KEY)
    try:
        pending = _pending(migrations, await _applied(connection))
        applied: list[str] = []
        if not check:
            for migration in pending:
                await _apply(connection, migration)
                applied.append(migration.name)
            pending = []
        grants = await _grant(connection, check=check)
    finally:
        await connection.execute("SELECT pg_advisory_unlock($1)", _LOCK_KEY)
    names = [migration.name for migration in pending]
    return Result(applied, names, grants, changed=bool(applied or names or grants))


async def status(connection: Any, migrations: Sequence[Migration]) -> Result:
    """Return what is applied and what is pending, without waiting for a running migration."""
    known = await _applied(connection)
    pending = [migration.name for migration in _pending(migrations, known)]
    return Result(sorted(known), pending, [], changed=False)


async def _applied(connection: Any) -> dict[str, str]:
    """Return name and checksum of the applied migrations."""
    if await connection.fetchval("SELECT to_regclass('public.schema_migrations')") is None:
        return {}
    rows = await connection.fetch("SELECT name, checksum FROM public.schema_migrations")
    return {row["name"]: row["checksum"] for row in rows}


def _pending(migrations: Sequence[Migration], applied: dict[str, str]) -> list[Migration]:
    """Return the migrations to apply; refuse a history that is not a prefix of ours."""
    known = {migration.name: migration for migration in migrations}
    if unknown := sorted(set(applied) - set(known)):
        raise MigrationError(
            f"the database has migrations this release does not know: {', '.join(unknown)} "
            "(it was migrated by a newer release)"
        )
    for name, checksum in applied.items():
        if known[name].checksum != checksum:
            raise MigrationError(
                f"migration {name} was changed after it had been applied "
                f"(applied {checksum[:12]}, now {known[name].checksum[:12]}): restore its text "
                "and add a new migration instead"
            )
    pending = [migration for migration in migrations if migration.name not in applied]
    if pending and applied and pending[0].name < max(applied):
        raise MigrationError(
            f"migration {pending[0].name} comes before {max(applied)}, which is already applied"
        )
    return pending


async def _apply(connection: Any, migration: Migration) -> None:
    async with connection.transaction():
        await connection.execute(
            "CREATE TABLE IF NOT EXISTS public.schema_migrations ("
            " name text PRIMARY KEY, checksum text NOT NULL,"
            " applied_at timestamptz NOT NULL DEFAULT now())"
        )
        await connection.execute("SET LOCAL search_path TO public")
        await connection.execute(migration.sql)
        await connection.execute(
            "INSERT INTO public.schema_migrations (name, checksum) VALUES ($1, $2)",
            migration.name,
            migration.checksum,
        )


async def _grant(connection: Any, *, check: bool) -> list[str]:
    """Grant what roles that exist lack; return one sentence per grant."""
    done: list[str] = []
    for role, tables in GRANTS.items():
        if not await connection.fetchval("SELECT 1 FROM pg_roles WHERE rolname = $1", role):
            continue
        for table, privileges in tables.items():
            for privilege in privileges:
                if await connection.fetchval(
                    "SELECT COALESCE(has_table_privilege($1, to_regclass($2), $3), false)",
                    role,
                    f"public.{table}",
                    privilege,
                ):
                    continue
                if not check:
                    await connection.execute(f"GRANT {privilege} ON public.{table} TO {role}")
                done.append(f"{privilege} on {table} to {role}")
        if role in _TEMPORARY_FOR and not await connection.fetchval(
            "SELECT has_database_privilege($1, current_database(), 'TEMPORARY')", role
        ):
            if not check:
                name = await connection.fetchval("SELECT quote_ident(current_database())")
                await connection.execute(f"GRANT TEMPORARY ON DATABASE {name} TO {role}")
            done.append(f"TEMPORARY on the database to {role}")
    return done

"""prime-spark-db: migrates the schema, keeps the time series in bounds."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
import msgspec

from prime_spark.config import (
    Attempts,
    Config,
    ConfigError,
    DatabaseConfig,
    PositiveSeconds,
    answer,
    argument_parser,
    config_from_arguments,
    read_attempts,
)
from prime_spark.runtime import atomic
from prime_spark.timeseries.connection import (
    DATABASE_ERRORS,
    connect,
    describe_database_error,
)
from prime_spark.timeseries.maintain import (
    Maintenance,
    MaintenanceConfig,
    maintain,
    textfile,
)
from prime_spark.timeseries.migrate import (
    MigrationError,
    Result,
    migrate,
    packaged_migrations,
    status,
)


class DbConfig(Config, frozen=True):
    """Configuration of prime-spark-db. The user has to own the database."""

    database: DatabaseConfig
    wait_seconds: PositiveSeconds = 30.0
    maintenance: MaintenanceConfig = MaintenanceConfig()


async def _run(config: DbConfig, command: str, *, check: bool) -> Result | Maintenance:
    looks = check or command == "status"
    connection = await _connect_patiently(config, extension=not looks)
    try:
        if command == "maintain":
            # A plan for any hour would lock every chunk.
            await connection.execute("SET plan_cache_mode = force_custom_plan")
            return await maintain(connection, config.maintenance)
        migrations = packaged_migrations()
        if command == "status":
            return await status(connection, migrations)
        # Someone else's migration may take its time, but not for ever.
        await connection.execute(f"SET lock_timeout = '{int(config.wait_seconds * 1000)}ms'")
        return await migrate(connection, migrations, check=check)
    finally:
        await connection.close(timeout=5)


async def _try_logins(config: DbConfig, attempts: Attempts) -> dict[str, list[bool]]:
    """Return for each user's passwords whether the database accepts them."""
    return {
        user: [await _accepts(config, user, password) for password in passwords]
        for user, passwords in attempts.items()
    }


async def _accepts(config: DbConfig, user: str, password: str) -> bool:
    database = msgspec.structs.replace(config.database, username=user)
    patient = msgspec.structs.replace(config, database=database)
    try:
        connection = await _connect_patiently(patient, password)
    except asyncpg.InvalidAuthorizationSpecificationError:
        return False
    except asyncpg.InsufficientPrivilegeError:
        return True  # the password is right, the user's database is another one
    await connection.close(timeout=5)
    return True


async def _connect_patiently(
    config: DbConfig, password: str | None = None, *, extension: bool = True
) -> Any:
    """Connect, waiting for a database that is still starting."""
    deadline = time.monotonic() + config.wait_seconds
    while True:
        try:
            return await connect(config.database, "prime-spark-db", password, extension=extension)
        except (OSError, TimeoutError, asyncpg.CannotConnectNowError):
            if time.monotonic() >= deadline:
                raise
            await asyncio.sleep(0.5)


def main(argv: Sequence[str] | None = None) -> int:
    """Console entry point."""
    parser = argument_parser(
        "prime-spark-db",
        "Apply the schema migrations of this release (migrate), say which are applied (status); "
        "roll up what was stored since and drop what is old (maintain); "
        'try the passwords on standard input, {"user": ["password"]} (login).',
    )
    parser.add_argument(
        "command", choices=["migrate", "status", "maintain", "login"], nargs="?", default="status"
    )
    parser.add_argument(
        "--check", action="store_true", help="say what `migrate` would do, change nothing"
    )
    parser.add_argument(
        "--metrics", type=Path, help="file for `maintain` to leave its figures in (Prometheus text)"
    )
    arguments = parser.parse_args(argv)
    config = config_from_arguments(arguments, DbConfig)
    try:
        if arguments.command == "login":
            attempts = read_attempts(sys.stdin.buffer)
            return answer({"accepted": asyncio.run(_try_logins(config, attempts))})
        result = asyncio.run(_run(config, arguments.command, check=arguments.check))
    except (MigrationError, ConfigError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except DATABASE_ERRORS as error:
        place = f"{config.database.host}:{config.database.port}"
        sys.stderr.write(f"error: database {place}: {describe_database_error(error)}\n")
        return 1
    if isinstance(result, Maintenance) and arguments.metrics and not result.busy:
        atomic.replace(arguments.metrics, textfile(result, datetime.now(UTC)).encode())
    return answer(result)


if __name__ == "__main__":
    sys.exit(main())

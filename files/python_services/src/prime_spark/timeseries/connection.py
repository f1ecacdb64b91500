"""Connections to PostgreSQL, and what their errors mean."""

from __future__ import annotations

from typing import Any

import asyncpg

from prime_spark.config import DatabaseConfig, read_credential

# SQLSTATE classes: data exception, integrity violation, program limit exceeded (a key too long
# for an index, say). The row is to blame; the same row will fail again.
_DATA_CLASSES = ("22", "23", "54")
# The server's own condition, whatever it is given: connections, log in, rights, schema, read-only,
# disk full, too many connections, shutdown, input and output.
_SERVER_STATES = ("25006", "53100", "53300")
_SERVER_CLASSES = ("08", "28", "3D", "42", "58")
_CONNECT_SECONDS = 10.0

# What any use of a connection may raise.
DATABASE_ERRORS = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
    TimeoutError,
)


async def connect(
    config: DatabaseConfig,
    application: str,
    password: str | None = None,
    *,
    extension: bool = True,
    **options: Any,
) -> Any:
    """Return an asyncpg connection; raises OSError, TimeoutError or asyncpg.PostgresError.

    The password is that of the credential unless one is given. Without `extension` TimescaleDB's
    library is not loaded: enough to look at plain tables, also while the extension still is of an
    older release whose library is gone.
    """
    settings = {
        "application_name": application,
        "timezone": "UTC",
        # A host that is lost in the middle of a transaction keeps its locks no longer than this.
        "idle_in_transaction_session_timeout": "60s",
        "tcp_keepalives_idle": "30",
        "tcp_keepalives_interval": "10",
        "tcp_keepalives_count": "3",
        "tcp_user_timeout": "60s",
    }
    if not extension:
        settings["timescaledb.disable_load"] = "on"
    return await asyncpg.connect(
        host=config.host,
        port=config.port,
        database=config.name,
        user=config.username,
        password=read_credential(config.credential) if password is None else password,
        timeout=_CONNECT_SECONDS,
        server_settings=settings,
        **options,
    )


def is_data_error(error: BaseException) -> bool:
    """Return whether the values are to blame, so that trying again cannot help."""
    if isinstance(error, asyncpg.PostgresError):
        return str(error.sqlstate or "")[:2] in _DATA_CLASSES
    # Raised by asyncpg's encoders, before anything is sent.
    return isinstance(error, OverflowError | TypeError | ValueError)


def is_server_condition(error: BaseException) -> bool:
    """Return whether the server would refuse any other rows as well."""
    state = str(getattr(error, "sqlstate", None) or "")
    return state in _SERVER_STATES or state.startswith(("57P", *_SERVER_CLASSES))


def describe_database_error(error: BaseException) -> str:
    """Return one line: SQLSTATE (where there is one) and message, without the row's values."""
    text = " ".join(str(error).split()) or type(error).__name__
    state = getattr(error, "sqlstate", None)
    return f"{state}: {text}" if state else text

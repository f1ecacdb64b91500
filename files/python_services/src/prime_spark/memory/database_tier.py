"""Tier 3: a table in PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import asyncpg

from prime_spark.memory.errors import QuotaError
from prime_spark.memory.settings import DatabaseTierConfig
from prime_spark.memory.tier import ENTRY_BYTES, Entry, TierDownError
from prime_spark.timeseries.connection import DATABASE_ERRORS, connect, describe_database_error

T = TypeVar("T")

_IDLE_SECONDS = 300.0
# No user's key begins with a dot.
_CHECK = ".health"


class DatabaseTier:
    """Keeps each entry as one row of `memory`. Connections are made when they are needed."""

    name = "postgresql"

    def __init__(self, config: DatabaseTierConfig) -> None:
        self.max_bytes = config.max_bytes
        self._config = config
        self._pool: Any = None

    async def get(self, key: str) -> Entry | None:
        """Return the entry, or None."""
        row = await self._run(
            lambda connection: connection.fetchrow(
                "SELECT data, is_json FROM public.memory WHERE key = $1", key
            )
        )
        return None if row is None else Entry(row["data"], row["is_json"])

    async def set(self, key: str, entry: Entry, ttl: int | None, owner: str) -> None:  # noqa: ARG002
        """Keep `entry`."""
        limits = {"owner": self._config.user_bytes, "all": self._config.all_bytes}
        row = await self._run(
            lambda connection: connection.fetchrow(
                "SELECT reason, used FROM public.memory_set($1, $2, $3, $4, $5, $6)",
                key,
                entry.data,
                entry.json,
                owner,
                *limits.values(),
            )
        )
        if (reason := row["reason"]) is not None:
            size = len(entry.data) + ENTRY_BYTES
            raise QuotaError(
                3, self.name, reason, used=row["used"], limit=limits[reason], size=size
            )

    async def delete(self, key: str) -> bool:
        """Remove the entry; return whether there was one."""
        answer: str = await self._run(
            lambda connection: connection.execute("DELETE FROM public.memory WHERE key = $1", key)
        )
        return answer != "DELETE 0"

    async def check(self) -> None:
        """Raise TierDownError when the database takes no value: away, full, read-only."""
        await self._run(
            lambda connection: connection.execute(
                "INSERT INTO public.memory (key, data, is_json) VALUES ($1, '', false)"
                " ON CONFLICT (key) DO UPDATE SET updated_at = now()",
                _CHECK,
            )
        )

    async def close(self) -> None:
        """Close the connections."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.terminate()

    async def _run(self, work: Callable[[Any], Awaitable[T]]) -> T:
        """Do `work` with a connection; the time limit includes connecting."""
        try:
            async with asyncio.timeout(self._config.timeout_seconds):
                return await self._with_connection(work)
        except TimeoutError as error:
            seconds = self._config.timeout_seconds
            raise TierDownError(f"no answer within {seconds:g} s") from error
        except DATABASE_ERRORS as error:
            raise TierDownError(describe_database_error(error), answers=_answers(error)) from error

    async def _with_connection(self, work: Callable[[Any], Awaitable[T]]) -> T:
        if self._pool is None:
            self._pool = asyncpg.create_pool(
                min_size=0,
                max_size=self._config.max_connections,
                max_inactive_connection_lifetime=_IDLE_SECONDS,
                connect=self._connect,
            )
        pool = await self._pool
        connection = await pool.acquire()
        try:
            return await work(connection)
        except BaseException:
            # Not returned to the pool in good order: that would wait for a server that hangs.
            connection.terminate()
            raise
        finally:
            await pool.release(connection)

    async def _connect(self, *_: object, **options: Any) -> Any:
        return await connect(self._config.database, "prime-spark-memory", **options)


def _answers(error: BaseException) -> bool:
    """Return whether the server is there and refused the statement."""
    away = asyncpg.PostgresConnectionError | asyncpg.OperatorInterventionError
    return isinstance(error, asyncpg.PostgresError) and not isinstance(error, away)

"""Statements to a PostgreSQL server of the tests."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg


def fetch(dsn: str, *statements: str) -> Any:
    """Run statements on one connection; return the value of the last."""

    async def go() -> Any:
        connection = await asyncpg.connect(dsn)
        try:
            for statement in statements[:-1]:
                await connection.execute(statement)
            return await connection.fetchval(statements[-1])
        finally:
            await connection.close()

    return asyncio.run(go())

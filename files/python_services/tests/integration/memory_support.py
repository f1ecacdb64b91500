"""A memory over a real Redis and PostgreSQL, and a directory as the NAS."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
from redis import Redis
from tests.integration.servers import PostgresServer, RedisServer

from api_support import create_redis_users
from prime_spark.memory.errors import (
    TierUnavailableError,
)
from prime_spark.memory.memory import Found, Memory
from prime_spark.memory.nas import SENTINEL
from prime_spark.memory.settings import MemoryConfig
from support import Command, create_database, create_role, database_config, sql

_numbers = itertools.count(1)


@dataclass
class World:
    """The servers behind a memory, and its configuration."""

    redis: RedisServer
    postgres: PostgresServer
    database: str
    share: Path
    config: dict[str, Any]

    @asynccontextmanager
    async def memory(self, **settings: dict[str, Any]) -> AsyncIterator[Memory]:
        config = {**self.config}
        for block, values in settings.items():
            config[block] = {**config.get(block, {}), **values}
        memory = Memory.from_config(msgspec.convert(config, MemoryConfig))
        try:
            yield memory
        finally:
            await memory.close()

    def files(self) -> list[str]:
        folder = self.share / "memory"
        return sorted(path.name for path in folder.iterdir()) if folder.exists() else []

    def rows(self) -> list[str]:
        return [
            row["key"]
            for row in sql(
                self.postgres,
                self.database,
                "SELECT key FROM memory WHERE key <> '.health' ORDER BY key",
            )
        ]

    def start_redis(self) -> None:
        self.redis.start()
        create_redis_users(self.redis, "api", password="secret")


def create_memory_database(postgres: PostgresServer, name: str, folder: Path) -> str:
    """A migrated database and the API's user; return its name."""
    create_role(postgres, "prime_spark_api", "secret")
    create_database(postgres, name)
    owner = {"database": database_config(postgres, name, postgres.username)}
    Command("db", folder, owner, {"database_password": postgres.password}).answer("migrate")
    return name


def create_world(
    redis: RedisServer,
    postgres: PostgresServer,
    database: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> World:
    """Servers without values, and a share."""
    create_redis_users(redis, "api", password="secret")
    with Redis.from_url(redis.url) as administrator:
        administrator.flushall()
    sql(postgres, database, "TRUNCATE memory, memory_usage")
    (folder / "credentials").mkdir()
    for name in ("redis_password", "database_password"):
        (folder / "credentials" / name).write_text("secret\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(folder / "credentials"))
    share = folder / "share"
    share.mkdir()
    (share / SENTINEL).touch()
    config = {
        "redis": {
            "host": redis.host,
            "port": redis.port,
            "username": "api",
            "credential": "redis_password",
        },
        "fast": {"timeout_seconds": 5.0},
        "nas": {"directory": str(share), "timeout_seconds": 5.0},
        "database": {
            "database": database_config(postgres, database, "prime_spark_api"),
            "timeout_seconds": 5.0,
        },
        "cooldown_seconds": 0.3,
        "state": str(folder / "memory.sqlite"),
    }
    return World(redis, postgres, database, share, config)


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(main)


def found(value: object, tier: int) -> Found:
    """What a `get` returns for a value that was set."""
    if isinstance(value, bytes):
        return Found(value, tier, is_json=False)
    return Found(msgspec.json.encode(value), tier, is_json=True)


async def unavailable(asking: Coroutine[Any, Any, Any]) -> tuple[int, str]:
    with pytest.raises(TierUnavailableError) as caught:
        await asking
    assert f"tier {caught.value.tier} ({caught.value.name}) is unavailable" in str(caught.value)
    return caught.value.tier, caught.value.reason


async def eventually_works(memory: Memory, tier: int) -> None:
    deadline = time.monotonic() + 20
    while not (await memory.health())[tier].ok:
        assert time.monotonic() < deadline, (await memory.health())[tier]
        await asyncio.sleep(0.05)

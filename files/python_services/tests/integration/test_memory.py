"""The memory's three tiers with a real Redis and PostgreSQL, and a directory as the NAS."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import pytest
from redis import Redis
from tests.integration.servers import PostgresServer, RedisServer

from api_support import create_redis_users
from prime_spark.memory.errors import (
    MemoryKeyError,
    MemoryValueError,
    QuotaError,
    TierUnavailableError,
    ValueTooLargeError,
)
from prime_spark.memory.ledger import Ledger
from prime_spark.memory.memory import Found, Memory
from prime_spark.memory.nas import SENTINEL
from prime_spark.memory.settings import MemoryConfig
from prime_spark.memory.tier import Entry
from support import Command, create_database, create_role, database_config, sql

VALUES = [{"a": [1, None, "ü\0", 1.5]}, "text", 0, None, [], b"", b"\0\xff bytes", b"{}"]

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


@pytest.fixture(scope="module")
def database(postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> str:
    create_role(postgres, "prime_spark_api", "secret")
    create_database(postgres, "memory")
    owner = {"database": database_config(postgres, "memory", postgres.username)}
    folder = tmp_path_factory.mktemp("db")
    Command("db", folder, owner, {"database_password": postgres.password}).answer("migrate")
    return "memory"


@pytest.fixture
def world(
    redis: RedisServer,
    postgres: PostgresServer,
    database: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> World:
    create_redis_users(redis, "api", password="secret")
    with Redis.from_url(redis.url) as administrator:
        administrator.flushall()
    sql(postgres, database, "TRUNCATE memory, memory_usage")
    (tmp_path / "credentials").mkdir()
    for name in ("redis_password", "database_password"):
        (tmp_path / "credentials" / name).write_text("secret\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path / "credentials"))
    share = tmp_path / "share"
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
        "rest_seconds": 0.3,
        "state": str(tmp_path / "memory.sqlite"),
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


@pytest.mark.parametrize("tier", [1, 2, 3])
def test_round_trip(world: World, tier: int) -> None:
    async def main() -> None:
        async with world.memory() as memory:
            for number, value in enumerate(VALUES):
                key = f"user:{number}.a-b"
                assert await memory.get(key) is None
                await memory.set(key, value, tier)
                got = await memory.get(key)
                assert got == found(value, tier)
                assert got is not None
                assert got.value == value
                await memory.set(key, "other", tier)
                assert (await memory.get(key)).value == "other"  # type: ignore[union-attr]
                assert tier in await memory.delete(key)
                assert await memory.get(key) is None
                assert await memory.delete(key) == []

    run(main())


def test_each_tier_is_where_it_should_be(world: World) -> None:
    async def main() -> None:
        async with world.memory() as memory:
            await memory.set("one:a", 1)
            await memory.set("two:a", {"b": 2}, tier=2)
            await memory.set("three:a", b"3", tier=3)
            with Redis.from_url(world.redis.url) as redis:
                assert redis.keys("memory:[^.]*") == [b"memory:one:a"]
                assert 3590 < redis.ttl("memory:one:a") <= 3600
        assert world.files() == ["two a.json"]
        assert (world.share / "memory/two a.json").read_bytes() == b'{"b":2}'
        assert await asyncio.to_thread(world.rows) == ["three:a"]

    run(main())


def test_ttl(world: World) -> None:
    async def main() -> None:
        async with world.memory(fast={"max_ttl": 100}) as memory:
            await memory.set("key", "above", ttl=1)
            await memory.set("beneath", 1, tier=3)
            deadline = time.monotonic() + 30
            while await memory.get("key") is not None:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.05)
            for arguments in ({"ttl": 0}, {"ttl": 101}, {"ttl": 5, "tier": 2}, {"tier": 4}):
                with pytest.raises(MemoryValueError, match=r"ttl|tier"):
                    await memory.set("key", 1, **arguments)

    run(main())


def test_found_further_down_is_copied_for_a_while(world: World) -> None:
    async def main() -> None:
        async with world.memory(fast={"copy_seconds": 7, "max_bytes": 100}) as memory:
            await memory.set("small", b"x", tier=3)
            await memory.set("large", b"x" * 101, tier=2)
            assert (await memory.get("small")).tier == 3  # type: ignore[union-attr]
            assert (await memory.get("small")).tier == 1  # type: ignore[union-attr]
            for _ in range(2):
                assert (await memory.get("large")).tier == 2  # type: ignore[union-attr]
            with Redis.from_url(world.redis.url) as redis:
                assert 1 <= redis.ttl("memory:small") <= 7

    run(main())


def test_last_write_is_what_is_read(world: World) -> None:
    async def main() -> None:
        async with world.memory() as memory:
            for value, tier in enumerate([1, 3, 2, 3, 1, 2]):
                await memory.set("key", value, tier)
                assert await memory.get("key") == found(value, tier)

    run(main())


def test_limits(world: World) -> None:
    limits = {"fast": {"max_bytes": 10}, "nas": {"max_bytes": 20}, "database": {"max_bytes": 30}}

    async def main() -> None:
        async with world.memory(**limits) as memory:
            for tier, limit in ((1, 10), (2, 20), (3, 30)):
                await memory.set("key", b"x" * limit, tier)
                with pytest.raises(ValueTooLargeError) as caught:
                    await memory.set("key", b"x" * (limit + 1), tier)
                assert (caught.value.tier, caught.value.limit) == (tier, limit)
            for key in ("", "a/b", ".a", "a.", "a b", "ä", "a.json", "x" * 129, "a\n", "../a"):
                for call in (memory.get(key), memory.delete(key), memory.set(key, 1)):
                    with pytest.raises(MemoryKeyError):
                        await call
            for value in (object(), {"a": [None, float("inf")]}, float("nan")):
                with pytest.raises(MemoryValueError, match="neither bytes nor JSON"):
                    await memory.set("key", value)

    run(main())


async def refused(memory: Memory, key: str, size: int, owner: str, tier: int) -> tuple[str, str]:
    """Whose limit it is, and the message, of a value that is not taken."""
    with pytest.raises(QuotaError) as caught:
        await memory.set(key, b"x" * size, tier, owner=owner)
    return caught.value.reason, str(caught.value)


@pytest.mark.parametrize(
    ("tier", "block", "name"), [(2, "nas", "nas"), (3, "database", "postgresql")]
)
def test_quotas(world: World, tier: int, block: str, name: str) -> None:
    kib = 1024

    async def main() -> None:
        quotas = {"user_bytes": 100 * kib, "all_bytes": 150 * kib}
        async with world.memory(**{block: quotas}) as memory:
            # All at once: what is counted is what is there.
            setting = [
                memory.set(f"a:{number}", b"x" * 9 * kib, tier, owner="ada") for number in range(12)
            ]
            outcomes = await asyncio.gather(*setting, return_exceptions=True)
            assert [type(outcome) for outcome in outcomes if outcome] == [QuotaError] * 2
            assert await refused(memory, "more", 0, "ada", tier) == (
                "owner",
                (
                    f"your values in tier {tier} ({name}) take 102400 of 102400 bytes, and this one"
                    " needs 1024: delete some, or use another tier"
                ),
            )
            taken = next(n for n, outcome in enumerate(outcomes) if outcome is None)
            await memory.set(f"a:{taken}", b"y" * 9 * kib, tier, owner="ada")  # in its own place
        async with world.memory(**{block: quotas}) as memory:  # restarted
            assert (await refused(memory, "more", 0, "ada", tier))[0] == "owner"
            for number in range(5):
                await memory.set(f"b{number}", b"x" * 9 * kib, tier, owner="bob")
            reason, message = await refused(memory, "b", 0, "bob", tier)
            assert (reason, "all values together" in message) == ("all", True)
            # Somebody else's is theirs from now on.
            await memory.set(f"a:{taken}", b"", tier, owner="bob")
            await memory.set("b", b"x" * 8 * kib, tier, owner="ada")
            await memory.delete("b")
            await memory.set("b", b"x" * 8 * kib, tier, owner="ada")
            await memory.delete("b3")
            await memory.delete("absent")
            assert (await refused(memory, "more", 9 * kib, "ada", tier))[0] == "owner"
            await memory.set("more", b"x" * 9 * kib, tier, owner="carl")

    run(main())


def test_the_database_counts_what_is_there(world: World) -> None:
    async def main() -> None:
        async with world.memory() as memory:
            assert (await memory.health())[3].ok
            # All at once: a few keys, set and deleted again and again.
            changing = [
                memory.delete(f"{number % 5}")
                if number % 4 == 3
                else memory.set(f"{number % 5}", b"x" * number * 10, 3, owner=f"{number % 3}")
                for number in range(60)
            ]
            await asyncio.gather(*changing)

    run(main())
    usage = "SELECT owner, bytes FROM memory_usage WHERE bytes > 0"
    counted = "SELECT owner, sum(octet_length(data) + 1024) AS bytes FROM memory GROUP BY owner"
    used = dict(sql(world.postgres, world.database, usage))
    there = dict(sql(world.postgres, world.database, counted))
    assert used == there | {"*": sum(there.values())}


def test_what_lies_on_the_nas_counts_after_the_ledger_is_lost(world: World) -> None:
    async def main() -> None:
        quotas = {"all_bytes": 10 * 1024}
        async with world.memory(nas=quotas) as memory:
            await memory.set("a:1", b"x" * 4000, 2, owner="ada")
            await memory.set("a:2", {"text": "x" * 3000}, 2, owner="ada")
        Path(world.config["state"]).write_bytes(b"not a database" * 1000)
        async with world.memory(nas=quotas) as memory:
            reason, message = await refused(memory, "b", 1000, "bob", 2)
            assert (reason, "take 9059 of 10240 bytes" in message) == ("all", True)
            await memory.delete("a:1")
            await memory.set("b", b"x" * 1000, 2, owner="bob")

    run(main())


def test_a_value_that_the_nas_does_not_take_does_not_count(world: World) -> None:
    async def main() -> None:
        async with world.memory(nas={"user_bytes": 4000}) as memory:
            await memory.set("key", b"old", 2, owner="ada")
            mounted = world.share.with_name("mounted")
            world.share.rename(mounted)
            for _ in range(3):
                await unavailable(memory.set("key", b"x" * 2000, 2, owner="ada"))
            mounted.rename(world.share)
            await eventually_works(memory, 2)
            await memory.set("other", b"x" * 1900, 2, owner="ada")
            assert (await refused(memory, "more", 1, "ada", 2))[1].count("take 3951 of 4000") == 1

    run(main())


def test_redis_down(world: World) -> None:
    async def main() -> None:
        async with world.memory() as memory:
            await memory.set("overwritten", "old", 1)
            await memory.set("deep", "value", 3)
            world.redis.stop()
            assert (await unavailable(memory.set("key", 1)))[0] == 1
            for tier in (2, 3):
                await memory.set(f"key{tier}", tier, tier)
                assert await memory.get(f"key{tier}") == found(tier, tier)
            assert (await unavailable(memory.get("absent")))[0] == 1
            await memory.set("overwritten", "new", 3)
            assert (await unavailable(memory.delete("deep")))[0] == 1
            assert await asyncio.to_thread(world.rows) == ["key3", "overwritten"], (
                "the other tiers have forgotten it"
            )
            health = await memory.health()
            assert [health[n].ok for n in (1, 2, 3)] == [False, True, True]
            assert health[1].reason

            world.start_redis()
            await eventually_works(memory, 1)
            assert await memory.get("overwritten") == found("new", 3), "not what Redis still held"
            assert await memory.get("deep") is None
            await memory.set("key", 1)

    run(main())


def test_an_older_value_is_not_read_after_a_restart(world: World) -> None:
    """Whatever could not be removed is not believed by the next process either."""

    async def main() -> None:
        async with world.memory() as memory:
            await memory.set("key", "old", 1)
            await memory.set("again", "old", 1)
            world.redis.stop()
            await memory.set("key", "new", 3)
            await memory.set("again", "new", 3)
        async with world.memory() as memory:  # the API was restarted, Redis is not back yet
            assert await memory.get("key") == found("new", 3)
        world.start_redis()
        async with world.memory() as memory:
            await memory.set("again", "newest", 1)
            assert await memory.get("key") == found("new", 3), "not what Redis still held"
            assert await memory.get("key") == found("new", 1), "its copy"
        async with world.memory() as memory:
            assert await memory.get("again") == found("newest", 1), "believed again"

    run(main())


async def outdated_in_redis(world: World, memory: Memory) -> None:
    """Leave an old value of `key` in Redis that must not be read, and a new one in tier 3."""
    await memory.set("key", "old", 1)
    world.redis.stop()
    await memory.set("key", "new", 3)
    world.start_redis()
    await eventually_works(memory, 1)


def test_what_is_new_is_not_taken_for_outdated_after_a_restart(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk of the ledger fails while a value takes the place of an outdated one."""

    def refuse(*_: object) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    async def main() -> None:
        async with world.memory() as memory:
            await outdated_in_redis(world, memory)
            with monkeypatch.context() as failing:
                failing.setattr(Ledger, "clear", refuse)
                assert "disk I/O error" in (await unavailable(memory.set("key", "newest", 1)))[1]
            assert await memory.get("key") == found("new", 3)
            await memory.set("key", "newest", 1)
        async with world.memory() as memory:
            assert await memory.get("key") == found("newest", 1)

    run(main())


def test_a_mark_outlives_the_clearing_of_the_one_before(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    clear = Ledger.clear
    clearing, go_on = threading.Event(), threading.Event()

    def slow_clear(ledger: Ledger, tier: int, key: str) -> None:
        clearing.set()
        assert go_on.wait(60)
        clear(ledger, tier, key)

    async def main() -> None:
        async with world.memory() as memory:
            await outdated_in_redis(world, memory)
            monkeypatch.setattr(Ledger, "clear", slow_clear)
            believing = asyncio.create_task(memory.set("key", "newer", 1))
            await asyncio.to_thread(clearing.wait, 60)
            world.redis.stop()
            newest = asyncio.create_task(memory.set("key", "newest", 3))
            await asyncio.wait({newest}, timeout=1)  # it may have to wait for the other
            go_on.set()
            await asyncio.gather(believing, return_exceptions=True)
            await newest
        world.start_redis()
        async with world.memory() as memory:
            assert await memory.get("key") == found("newest", 3)

    run(main())


def test_a_get_that_removes_what_is_outdated_removes_nothing_newer(world: World) -> None:
    async def main() -> None:
        async with world.memory() as memory:
            await outdated_in_redis(world, memory)
            redis = memory._guards[1].tier
            removing, go_on = asyncio.Event(), asyncio.Event()
            delete = redis.delete

            async def slow_delete(key: str) -> bool:
                redis.delete = delete  # type: ignore[method-assign]
                removing.set()
                await go_on.wait()
                return await delete(key)

            redis.delete = slow_delete  # type: ignore[method-assign]
            reading = asyncio.create_task(memory.get("key"))
            await removing.wait()
            writing = asyncio.create_task(memory.set("key", "newest", 1))
            await asyncio.wait({writing}, timeout=1)  # it may have to wait for the other
            go_on.set()
            assert await reading in (found("new", 3), found("newest", 1))
            await writing
            assert await memory.get("key") == found("newest", 1)

    run(main())


def test_no_mark_is_forgotten_for_another(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prime_spark.memory.memory._MAX_OUTDATED", 2)

    async def main() -> None:
        async with world.memory() as memory:
            for number in range(3):
                await memory.set(f"key{number}", "old", 1)
            world.redis.stop()
            for number in range(2):
                await memory.set(f"key{number}", "new", 3)
            tier, reason = await unavailable(memory.set("key2", "new", 3))
            assert (tier, "2 values" in reason) == (1, True)
            await memory.set("key1", "newer", 3)  # is among them
            world.start_redis()
            await eventually_works(memory, 1)
            for number, value in enumerate(("new", "newer", "old")):
                assert (await memory.get(f"key{number}")).value == value  # type: ignore[union-attr]

    run(main())


def test_restarted_servers_cost_no_request(world: World) -> None:
    async def main() -> None:
        async with world.memory() as memory:
            await asyncio.gather(*(memory.set(f"one{n}", n, 1) for n in range(5)))
            await asyncio.gather(*(memory.set(f"three{n}", n, 3) for n in range(5)))
            for restart in (
                *(world.redis.stop, world.start_redis),
                *(world.postgres.stop, world.postgres.start),
            ):
                # In a thread, as it happens elsewhere: the event loop sees connections end.
                await asyncio.to_thread(restart)
            await asyncio.gather(*(memory.get(f"one{n}") for n in range(5)))
            await asyncio.gather(*(memory.set(f"three{n}", n, 3) for n in range(5)))

    run(main())


def test_silent_redis_costs_its_time_only_once(world: World) -> None:
    async def main() -> None:
        async with world.memory(fast={"timeout_seconds": 1.0}) as memory:
            await memory.set("key", "value", 1)
            await memory.set("deep", 3, 3)
            os.kill(world.redis.pid, signal.SIGSTOP)
            try:
                started = time.monotonic()
                assert await memory.get("deep") == found(3, 3)
                assert 0.5 < time.monotonic() - started < 20
                started = time.monotonic()
                for _ in range(20):
                    assert (await unavailable(memory.get("absent")))[0] == 1
                assert time.monotonic() - started < 10, "Redis is asked although its tier rests"
            finally:
                os.kill(world.redis.pid, signal.SIGCONT)
            await eventually_works(memory, 1)
            # And not with the answer to what was given up.
            assert await memory.get("key") == found("value", 1)

    run(main())


def test_full_redis_refuses_writes_and_still_reads(world: World) -> None:
    async def main() -> None:
        async with world.memory() as memory:
            await memory.set("key", "value")
            assert (await memory.health())[1].ok
            with Redis.from_url(world.redis.url) as administrator:
                administrator.config_set("maxmemory", "100kb")
                try:
                    with pytest.raises(QuotaError, match="no room left but what the fleet"):
                        await memory.set("other", "value")
                    assert (await memory.get("key")) == found("value", 1)
                    health = (await memory.health())[1]
                    assert not health.ok
                    assert "takes no value: Redis has no room" in health.reason
                    assert (await memory.get("key")) == found("value", 1), "it is asked still"
                finally:
                    administrator.config_set("maxmemory", "64mb")
            assert (await memory.health())[1].ok
            await memory.set("other", "value")

    run(main())


def test_database_down(world: World) -> None:
    async def main() -> None:
        async with world.memory() as memory:
            await memory.set("key3", 3, 3)
            world.postgres.stop()
            try:
                assert (await unavailable(memory.set("key", 1, 3)))[0] == 3
                for tier in (1, 2):
                    await memory.set(f"key{tier}", tier, tier)
                    assert await memory.get(f"key{tier}") == found(tier, tier)
                assert (await unavailable(memory.get("key3")))[0] == 3
            finally:
                world.postgres.start()
            await eventually_works(memory, 3)
            assert await memory.get("key3") == found(3, 3)

    run(main())


@pytest.mark.parametrize("connected", [False, True], ids=["new connection", "pooled connection"])
def test_silent_database_costs_its_time_only_once(world: World, connected: bool) -> None:
    async def main() -> None:
        async with world.memory(database={"timeout_seconds": 1.0}) as memory:
            if connected:
                await memory.get("absent")
            # It takes what comes and answers nothing. Stopped first and let go last, the server
            # neither makes nor reaps a process meanwhile: every one of them is still there.
            server = world.postgres.pid
            os.kill(server, signal.SIGSTOP)
            children = Path(f"/proc/{server}/task/{server}/children").read_text().split()
            processes = [*map(int, children), server]
            for process in processes:
                os.kill(process, signal.SIGSTOP)
            try:
                started = time.monotonic()
                tier, reason = await unavailable(memory.get("absent"))
                assert (tier, reason) == (3, "no answer within 1 s")
                assert 0.9 < time.monotonic() - started < 20
                started = time.monotonic()
                for _ in range(20):
                    await unavailable(memory.get("absent"))
                assert time.monotonic() - started < 10, "the tier rests"
            finally:
                for process in processes:
                    os.kill(process, signal.SIGCONT)
            await eventually_works(memory, 3)

    run(main())


def test_hanging_statement_gives_its_connection_back(world: World) -> None:
    """A locked table holds up those who ask for it, not those who ask afterwards."""

    async def main() -> None:
        async with world.memory(database={"max_connections": 2, "timeout_seconds": 0.5}) as memory:
            await memory.set("key", 1, 3)
            postgres = world.postgres
            lock = await asyncpg.connect(
                host=postgres.host,
                port=postgres.port,
                user=postgres.username,
                password=postgres.password,
                database=world.database,
            )
            try:
                async with lock.transaction():
                    await lock.execute("LOCK TABLE memory IN ACCESS EXCLUSIVE MODE")
                    asking = [unavailable(memory.get(f"absent{n}")) for n in range(5)]
                    started = time.monotonic()
                    assert {tier for tier, _ in await asyncio.gather(*asking)} == {3}
                    assert time.monotonic() - started < 20
            finally:
                await lock.close()
            await eventually_works(memory, 3)
            assert (await memory.get("key")) is not None

    run(main())


def test_unmounted_nas_gets_nothing_written_beneath(world: World) -> None:
    async def main() -> None:
        async with world.memory() as memory:
            await memory.set("key2", 2, 2)
            await memory.set("key3", 3, 3)
            mounted = world.share.with_name("mounted")
            world.share.rename(mounted)
            world.share.mkdir()  # the mount point, as it is without the share
            tier, reason = await unavailable(memory.set("key", 1, 2))
            assert (tier, "not mounted?" in reason) == (2, True)
            assert (await unavailable(memory.get("key2")))[0] == 2
            assert await memory.get("key3") == found(3, 3)
            await memory.set("key1", 1, 1)
            assert not (await memory.health())[2].ok
            assert list(world.share.iterdir()) == []
            world.share.rmdir()
            mounted.rename(world.share)
            await eventually_works(memory, 2)
            assert await memory.get("key2") == found(2, 2)

    run(main())


def nas_threads() -> int:
    return sum(thread.name == "nas" for thread in threading.enumerate())


def test_hanging_nas_holds_few_threads_and_no_other_tier(world: World) -> None:
    async def main() -> None:
        async with world.memory(nas={"max_calls": 3, "timeout_seconds": 1.0}) as memory:
            await memory.set("key2", 2, 2)
            pipe = world.share / "memory/hangs"
            os.mkfifo(pipe)  # opening it waits for a writer, as a dead server is waited for
            slowest = 0.0
            for _ in range(4):
                asking = [unavailable(memory.get("hangs")) for _ in range(5)]
                started = time.monotonic()
                assert {tier for tier, _ in await asyncio.gather(*asking)} == {2}
                slowest = max(slowest, time.monotonic() - started)
                assert 0 < nas_threads() <= 3
                await memory.set("key1", 1, 1)
                await memory.set("key3", 3, 3)
            assert slowest < 10
            writers = [os.open(pipe, os.O_RDWR)]
            pipe.unlink()
            os.close(writers[0])
            await eventually_works(memory, 2)
            assert await memory.get("key2") == found(2, 2)
            deadline = time.monotonic() + 30
            while nas_threads():  # one that has answered may still be about to end
                assert time.monotonic() < deadline
                await asyncio.sleep(0.01)

    run(main())


def test_overtaken_get_copies_nothing(world: World) -> None:
    """A value read before a deletion must not come back through its copy in tier 1."""

    async def main() -> None:
        async with world.memory() as memory:
            await memory.set("key", "old", 3)
            tier = memory._guards[3].tier
            read, go_on = asyncio.Event(), asyncio.Event()
            get = tier.get

            async def slow_get(key: str) -> Entry | None:
                entry = await get(key)
                read.set()
                await go_on.wait()
                return entry

            tier.get = slow_get  # type: ignore[method-assign]
            reading = asyncio.create_task(memory.get("key"))
            await read.wait()
            assert await memory.delete("key") == [3]
            go_on.set()
            assert (await reading).value == "old"  # type: ignore[union-attr]
            assert await memory.get("key") is None

    run(main())


def test_the_api_role_has_no_other_right(world: World) -> None:
    rights = sql(
        world.postgres,
        world.database,
        "SELECT table_name, privilege_type FROM information_schema.role_table_grants"
        " WHERE grantee = 'prime_spark_api'",
    )
    assert {tuple(row) for row in rights} == {
        ("memory", "SELECT"),
        ("memory", "INSERT"),
        ("memory", "UPDATE"),
        ("memory", "DELETE"),
        ("memory_usage", "SELECT"),
    }

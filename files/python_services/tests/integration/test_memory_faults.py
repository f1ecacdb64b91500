"""The memory while a tier is down, silent, full or restarts."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import threading
import time
from pathlib import Path

import asyncpg
import pytest
from memory_support import (
    World,
    create_memory_database,
    create_world,
    eventually_works,
    found,
    run,
    unavailable,
)
from redis import Redis
from tests.integration.servers import PostgresServer, RedisServer

from prime_spark.memory.errors import (
    QuotaError,
)
from prime_spark.memory.ledger import Ledger
from prime_spark.memory.memory import Memory


@pytest.fixture(scope="module")
def database(postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> str:
    return create_memory_database(postgres, "memory_faults", tmp_path_factory.mktemp("db"))


@pytest.fixture
def world(
    redis: RedisServer,
    postgres: PostgresServer,
    database: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> World:
    return create_world(redis, postgres, database, tmp_path, monkeypatch)


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

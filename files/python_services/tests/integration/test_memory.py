"""The memory's three tiers with a real Redis and PostgreSQL, and a directory as the NAS."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

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
    MemoryKeyError,
    MemoryValueError,
    QuotaError,
    ValueTooLargeError,
)
from prime_spark.memory.memory import Memory
from prime_spark.memory.tier import Entry
from support import sql

VALUES = [{"a": [1, None, "ü\0", 1.5]}, "text", 0, None, [], b"", b"\0\xff bytes", b"{}"]


@pytest.fixture(scope="module")
def database(postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> str:
    return create_memory_database(postgres, "memory", tmp_path_factory.mktemp("db"))


@pytest.fixture
def world(
    redis: RedisServer,
    postgres: PostgresServer,
    database: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> World:
    return create_world(redis, postgres, database, tmp_path, monkeypatch)


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

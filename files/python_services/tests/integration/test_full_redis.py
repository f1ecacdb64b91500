"""One operator cannot fill Redis, and what fails in a full one fails with its name."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from redis import Redis
from redis.asyncio import Redis as Async
from tests.integration.servers import RedisServer, redis_server

from api_support import SECRET, Api, Servers, create_redis_users, problem, running_api
from prime_spark.runtime.shelf import CACHE, Shelf
from support import eventually

MIB = 1 << 20
# Of 32 MiB a quarter is for the fleet alone.
MAX_MEMORY = 32 * MIB
VALUE = "x" * (100 * 1024)
TASK = {"task_type": "llm", "payload": {"prompt": "x" * 60_000}}


@pytest.fixture(scope="module")
def small_redis() -> Iterator[RedisServer]:
    with redis_server({"maxmemory": str(MAX_MEMORY)}) as server:
        yield server


@pytest.fixture
def administrator(small_redis: RedisServer) -> Iterator[Redis]:
    create_redis_users(small_redis, "api", "agent", "dispatcher", password=SECRET)
    with Redis.from_url(small_redis.url) as redis:
        redis.flushall()
        yield redis


@contextmanager
def user(server: RedisServer, name: str) -> Iterator[Redis]:
    with Redis(host=server.host, port=server.port, username=name, password=SECRET) as redis:
        yield redis


@contextmanager
def api_with(server: RedisServer, folder: Path, **fast: object) -> Iterator[Api]:
    with running_api(Servers(redis=server), folder, memory={"fast": fast}) as api:
        yield api


def keep(api: Api, user: str, key: str, value: str, **more: int) -> httpx.Response:
    body = {"key": key, "value": value, **more}
    return api.ask("POST", "/api/memory/set", user=user, json=body)


def delete(api: Api, user: str, key: str) -> None:
    """Tier 1 forgets the key; the others, which are not there, are named."""
    said = problem(api.ask("DELETE", f"/api/memory/{key}", user=user), 503, "unavailable")
    assert "tier 1" not in said["detail"]


def fill(api: Api, user: str, name: str) -> int:
    """Keep values until not even small ones are taken; return how many large ones were."""
    kept = {}
    for size in (len(VALUE), 1000):
        # Small ones fill what the buffers of connections give back as well.
        for number in range(10_000):
            answer = keep(api, user, f"{name}:{size}:{number}", VALUE[:size])
            if answer.status_code != 200:
                said = problem(answer, 507, "no_room")["detail"]
                assert "tier 1 (redis)" in said
                assert "delete some" in said or "what the fleet itself needs" in said
                break
        else:
            raise AssertionError("never refused")
        kept[size] = number
    return kept[len(VALUE)]


@pytest.mark.usefixtures("administrator")
def test_one_operator_leaves_room_for_the_others(small_redis: RedisServer, tmp_path: Path) -> None:
    quotas = {"user_bytes": 6 * MIB, "all_bytes": 9 * MIB, "timeout_seconds": 5.0}
    with api_with(small_redis, tmp_path, **quotas) as api:
        one_operator(api)


def one_operator(api: Api) -> None:
    assert fill(api, "oscar", "first") == 60, "6 MiB of 101 KiB each"
    assert fill(api, "alice", "second") == 30, "what is left of 9 MiB"
    assert keep(api, "oscar", f"first:{len(VALUE)}:0", VALUE).status_code == 200, "as before"
    # What expires, is deleted, or overwritten by somebody else gives its room back.
    less = VALUE[:-5000]
    for user in ("oscar", "alice"):
        problem(keep(api, user, "more", less), 507, "no_room")
    assert keep(api, "alice", f"first:{len(VALUE)}:0", "small").status_code == 200
    assert keep(api, "oscar", "short", less, ttl=4).status_code == 200
    problem(keep(api, "oscar", "more", less), 507, "no_room")
    gone = "/api/memory/get/short"
    eventually(lambda: api.ask("GET", gone, user="vera").status_code != 200)
    assert keep(api, "oscar", "more", less).status_code == 200
    problem(keep(api, "oscar", "another", less), 507, "no_room")
    delete(api, "alice", "more")
    assert keep(api, "oscar", "another", less).status_code == 200
    assert api.login("vera").status_code == 200
    answer = api.ask("POST", "/api/tasks/submit", user="oscar", json=TASK)
    assert answer.status_code == 200, answer.text


def test_what_is_left_is_the_fleets(
    small_redis: RedisServer, administrator: Redis, tmp_path: Path
) -> None:
    """Even where the quotas are too large."""
    quotas = {"user_bytes": 1 << 30, "all_bytes": 1 << 30, "timeout_seconds": 5.0}
    with api_with(small_redis, tmp_path, **quotas) as api:
        kept = fill(api, "oscar", "v")
        assert 150 < kept < 24 * 10, "three quarters of 32 MiB"
        refused = problem(
            api.ask("POST", "/api/tasks/submit", user="oscar", json=TASK), 507, "no_room"
        )
        assert "redis has no room left but what the fleet itself needs" in refused["detail"]
        # The rest goes on: logins, heartbeats, the lease.
        for _ in range(5):
            assert api.login("vera").status_code == 200
        with user(small_redis, "agent") as agent, user(small_redis, "dispatcher") as dispatcher:
            assert agent.set("agent:a", b"x" * 2000, px=15_000)
            assert dispatcher.set("tasks:lease", b"me", px=15_000)

        def told() -> bool:
            component = api.http.get("/health").json()["components"]["redis"]
            return not component["ok"] and "Redis has no room" in component["detail"]

        eventually(told, what="/health says that Redis is full")
        assert api.subsystems()["redis"]["status"] == "down"
        # Deleted values make room at once.
        for number in range(5):
            delete(api, "oscar", f"v:{len(VALUE)}:{number}")
        submitted = api.ask("POST", "/api/tasks/submit", user="oscar", json=TASK)
        assert submitted.status_code == 200, submitted.text
        full(api, administrator, submitted.json()["task_id"], kept)


def full(api: Api, administrator: Redis, task_id: str, kept: int) -> None:
    """Full to the brim, by whatever it was: each failure has its name, nothing is lost."""
    administrator.config_set("maxmemory", "1mb")
    try:
        assert "redis" in problem(api.login("vera"), 503, "unavailable")["reasons"]
        problem(keep(api, "oscar", "more", "value"), 507, "no_room")
        problem(api.ask("POST", "/api/tasks/submit", user="oscar", json=TASK), 507, "no_room")
        assert api.subsystems()["redis"]["status"] == "down"
        assert api.ask("GET", "/api/auth/me", user="vera").status_code == 200
    finally:
        administrator.config_set("maxmemory", str(MAX_MEMORY))
    task = api.ask("GET", f"/api/tasks/{task_id}", user="oscar").json()
    assert (task["status"], task["owner"]) == ("PENDING", "oscar")
    for number in (5, kept - 1):
        found = api.ask("GET", f"/api/memory/get/v:{len(VALUE)}:{number}", user="vera")
        assert found.json() == VALUE
    assert api.login("vera").status_code == 200
    assert keep(api, "oscar", "more", "value").status_code == 200


def test_cached_answers_give_way(small_redis: RedisServer, administrator: Redis) -> None:
    async def main() -> None:
        client = Async(
            host=small_redis.host, port=small_redis.port, username="api", password=SECRET
        )
        cache = Shelf(client, CACHE, owner_bytes=4 * MIB, all_bytes=4 * MIB, evicts=True)
        values = Shelf(client, "memory:", owner_bytes=1 << 30, all_bytes=1 << 30)
        answer = VALUE.encode()
        for number in range(60):
            assert await cache.keep(f"{number}", answer, 60 + number, "answers") is None
        left = [number for number in range(60) if await cache.get(f"{number}") is not None]
        assert left == list(range(60 - 40, 60)), "4 MiB of them, and the oldest went"
        for number in range(1000):
            refusal = await values.keep(f"{number}", answer, 60, "user:oscar")
            if refusal is not None:
                assert refusal.reason == "room"
                break
            if number == 150:
                assert await cache.get("59") is not None, "while there is room it stays"
        assert await cache.get("59") is None, "gone before anything was refused"
        # Larger, since what Redis itself needs goes up and down by some KiB.
        refusal = await cache.keep("new", answer * 2, 60, "answers")
        assert refusal is not None
        assert refusal.reason == "room"
        await client.aclose()

    asyncio.run(main())
    assert administrator.hgetall("llm:cache:.used") == {}
    assert administrator.keys("llm:cache:*") == []

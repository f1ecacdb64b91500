"""Dispatchers that wait, are killed, frozen or lose Redis: no task is lost or done twice."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
from redis import Redis
from tasks_support import (
    DEAD_SECONDS,
    World,
    restarted,
    running_world,
)
from tests.integration.servers import RedisServer

from prime_spark.config import RedisConfig
from prime_spark.dispatcher.store import Lease, OvertakenError, TaskStore, Waiting
from prime_spark.runtime.redis_client import redis_client
from prime_spark.tasks.protocol import ExecuteAnswer
from prime_spark.tasks.results import Results
from prime_spark.tasks.settings import CoordinatorConfig
from support import Command, Daemon, eventually


@pytest.fixture
def world(redis: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    with running_world(redis, tmp_path, monkeypatch) as found:
        yield found


def until_dispatcher_waits(world: World) -> None:
    """Wait until a dispatcher's command waits in Redis."""

    def probe() -> bool:
        with Redis.from_url(world.redis.url, decode_responses=True) as administrator:
            clients = administrator.client_list()
        return [client["user"] for client in clients if "b" in client["flags"]] == ["dispatcher"]

    eventually(probe, what="the dispatcher waits in Redis")


def test_idle_dispatcher_waits_and_is_woken(world: World) -> None:
    """Of its rounds only the one that the wake-up begins comes soon enough."""
    world.agent("a")
    dispatcher = world.dispatcher(lease_seconds=120.0, poll_seconds=10.0)
    for number in range(2):
        until_dispatcher_waits(world)
        world.until_begun(world.submit({"n": number}))
    assert dispatcher.healthy()
    assert dispatcher.terminate() == 0


def test_task_whose_wake_up_was_lost_is_done(world: World) -> None:
    """Also that of an API which has been rolled back to a release without wake-ups."""
    world.agent("a")
    task_id = world.submit()
    with Redis.from_url(world.redis.url) as administrator:
        administrator.rename("tasks:queue:llm", "aside")
        world.dispatcher()
        until_dispatcher_waits(world)
        administrator.rename("aside", "tasks:queue:llm")
    assert world.ended(task_id).state == "COMPLETED"


def test_no_task_has_waited_while_the_dispatcher_was_idle(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = CoordinatorConfig(queue_seconds=60)
    task_id = world.submit(settings=settings)

    async def main() -> None:
        config = {**world.redis_config, "username": "dispatcher"}
        redis = redis_client(msgspec.convert(config, RedisConfig))
        fence = await Lease(redis, "me", 10).acquire()
        assert fence is not None
        store = TaskStore(redis, fence, 60)
        clock = SimpleNamespace(time=time.time, monotonic=lambda: time.monotonic() + 3600)
        monkeypatch.setattr("prime_spark.dispatcher.store.time", clock)
        await store.wait(redis, 10)
        assert await store.due("too late") == 0
        await redis.aclose()

    asyncio.run(main())
    assert world.status(task_id).state == "PENDING"


def test_killed_dispatchers_tasks_are_taken_over(world: World) -> None:
    world.agent("a", capacity=2)
    dispatcher = world.dispatcher()
    tasks = [world.submit({"seconds": 2, "n": number}) for number in range(2)]
    waiting = world.submit({"n": 3})
    for task_id in tasks:
        world.until(task_id, "IN_PROGRESS")
    dispatcher.kill()
    dispatcher.start()
    for task_id in (*tasks, waiting):
        status = world.ended(task_id)
        assert (status.state, status.attempts) == ("COMPLETED", 1)
    assert Counter(world.journal("began")).most_common(1)[0][1] == 1, "each begun once"


def test_task_completed_while_nobody_dispatches_is_not_done_again(world: World) -> None:
    world.agent("a")
    dispatcher = world.dispatcher()
    task_id = world.submit({"seconds": 2})
    world.until(task_id, "IN_PROGRESS")
    dispatcher.kill()
    eventually(lambda: world.journal("ended"))
    assert world.status(task_id).state == "IN_PROGRESS"
    dispatcher.start()
    assert world.ended(task_id).state == "COMPLETED"
    assert len(world.journal("began")) == 1


def test_two_dispatchers_share_nothing(world: World) -> None:
    world.agent("a", capacity=4)
    first, second = world.dispatcher(), world.dispatcher()
    daemons = dict.fromkeys((first, second), 0.0)  # type: ignore[misc]

    def leading() -> list[Daemon]:
        name = "prime_spark_dispatcher_leading"
        return [daemon for daemon in daemons if daemon.metric(name) == 1]

    eventually(lambda: len(leading()) == 1 and first.healthy() and second.healthy())
    tasks = [world.submit({"n": number}) for number in range(12)]
    for task_id in tasks:
        assert world.ended(task_id).state == "COMPLETED"
    assert Counter(world.journal("began")).most_common(1)[0][1] == 1
    (leader,) = leading()
    leader.kill()
    task_id = world.submit({"n": 99})
    assert world.ended(task_id).state == "COMPLETED", "the other takes over"


def test_frozen_dispatcher_is_overtaken_and_changes_nothing_more(world: World) -> None:
    world.agent("a", capacity=2)
    first = world.dispatcher()
    slow = world.submit({"seconds": 4})
    world.until(slow, "IN_PROGRESS")
    assert first.process is not None
    first.process.send_signal(signal.SIGSTOP)
    try:
        second = world.dispatcher()
        quick = world.submit({"n": 1})
        assert world.ended(quick).state == "COMPLETED"
        with Redis.from_url(world.redis.url, decode_responses=True) as client:
            fence, holder = client.get("tasks:fence"), client.get("tasks:lease")
            status = world.ended(slow)
            first.process.send_signal(signal.SIGCONT)
            eventually(lambda: first.metric("prime_spark_dispatcher_leading") == 0)
            eventually(lambda: "lease lost" in first.log.read_text())
            assert world.status(slow) == status, "its late answer changes nothing"
            assert (client.get("tasks:fence"), client.get("tasks:lease")) == (fence, holder)
        assert second.metric("prime_spark_dispatcher_leading") == 1
        assert len([1 for _, _, task in world.journal("began") if task == slow]) == 1
    finally:
        first.process.send_signal(signal.SIGCONT)


def test_overtaken_store_changes_nothing(world: World) -> None:
    task_id = world.submit()

    async def main() -> None:
        config = {**world.redis_config, "username": "dispatcher"}
        redis = redis_client(msgspec.convert(config, RedisConfig))
        first, second = (Lease(redis, name, 0.5) for name in ("first", "second"))
        fence = await first.acquire()
        assert fence is not None
        assert await second.acquire() is None
        store = TaskStore(redis, fence, 60)
        waiting = Waiting(task_id, "llm", 0)
        attempt = await store.assign(waiting, "a", "1")
        assert attempt is not None
        assert await store.assign(waiting, "b", "1") is None, "given out already"
        await asyncio.sleep(0.6)
        assert not first.valid
        await first.renew(fence)  # nobody has held it meanwhile
        await first.release()
        other = await second.acquire()
        assert other is not None
        assert other > fence
        changes = (
            store.announce(["x"]),
            store.assign(waiting, "b", "1"),
            store.started(attempt),
            store.complete(attempt, b"{}"),
            store.fail(attempt, "x"),
            store.again(attempt, "x", seconds=0, counted=True, tried=[]),
            store.due("x"),
            first.renew(fence),
        )
        before = administrator.hgetall(f"tasks:task:{task_id}")
        for change in changes:
            with pytest.raises(OvertakenError):
                await change
        assert administrator.hgetall(f"tasks:task:{task_id}") == before
        now = TaskStore(redis, other, 60)
        old = msgspec.structs.replace(attempt, number=7)
        assert not await now.complete(old, b"{}"), "another attempt than the present one"
        assert await now.complete(attempt, b"1")
        assert not await now.fail(attempt, "late"), "it has ended"
        await redis.aclose()

    with Redis.from_url(world.redis.url) as administrator:
        asyncio.run(main())
    assert world.status(task_id).state == "COMPLETED"


def test_second_completion_does_not_count(world: World) -> None:
    async def main() -> None:
        config = {**world.redis_config, "username": "agent"}
        redis = redis_client(msgspec.convert(config, RedisConfig))
        results = Results(redis)
        first, second = (ExecuteAnswer("t", "completed", number) for number in (1, 2))
        assert await results.find("t") is None
        assert await results.commit(first) == first
        assert await results.commit(second) == first
        assert await results.find("t") == first
        await redis.aclose()

    asyncio.run(main())


def test_redis_restarted_under_way(world: World) -> None:
    world.agent("a", capacity=2)
    dispatcher = world.dispatcher()
    tasks = [world.submit({"seconds": 1.0, "n": number}) for number in range(3)]
    world.until(tasks[0], "IN_PROGRESS")
    with restarted(world.redis):
        eventually(lambda: dispatcher.health().get("http") == 503)
    for task_id in tasks:
        assert world.ended(task_id).state == "COMPLETED"
    assert len(world.journal("ended")) == 3
    eventually(dispatcher.healthy)


def test_long_loss_of_redis_makes_no_agent_dead(world: World) -> None:
    """No agent can send a heartbeat without Redis: that is not its fault. Answers wait."""
    world.agent("a", capacity=2)
    dispatcher = world.dispatcher(max_attempts=1)
    done = world.submit({"seconds": 0.3})
    failed = world.submit({"seconds": 0.3, "fail": ["a"]})
    for task_id in (done, failed):
        world.until(task_id, "IN_PROGRESS", "COMPLETED", "FAILED")
    with restarted(world.redis):
        eventually(lambda: world.journal("ended"))
        eventually(lambda: dispatcher.health().get("http") == 503)
        gone = time.monotonic()
        eventually(lambda: time.monotonic() - gone > 2 * DEAD_SECONDS)
    assert (world.ended(done).state, world.status(done).attempts) == ("COMPLETED", 1)
    assert world.ended(failed).error == "attempt 1 on a: a cannot"
    assert len(world.journal("began")) == 2, "each once"


def test_configuration_is_checked(world: World) -> None:
    agents = [{"name": "a", "url": "http://127.0.0.1:1"}] * 2
    config = {
        "redis": world.redis_config,
        "agents": agents,
        "credential": "agent_token",
        "http": {"host": "127.0.0.1", "port": 9},
    }
    command = Command(
        "dispatcher", world.folder, config, {"redis_password": "x", "agent_token": "x"}
    )
    assert "two agents have the same name" in command.run("--check-config", expect=2).stderr
    command.config["agents"] = [{"name": "a", "url": "http://127.0.0.1:1/path"}]
    assert ".url`" in command.run("--check-config", expect=2).stderr
    command.config["agents"] = agents[:1]
    assert command.run("--check-config").stdout.endswith(": ok\n")

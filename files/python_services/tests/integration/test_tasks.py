"""Tasks from submission to their end: real Redis, dispatchers and agents as processes."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from redis import Redis
from tasks_support import (
    World,
    restarted,
    running_world,
)
from tests.integration.servers import RedisServer

from prime_spark import __version__
from prime_spark.config import RedisConfig
from prime_spark.dispatcher.store import Lease, TaskStore, Waiting
from prime_spark.runtime.redis_client import redis_client
from prime_spark.tasks.coordinator import (
    CoordinatorUnavailableError,
    QueueFullError,
    TaskConflictError,
    TaskError,
)
from prime_spark.tasks.protocol import TASK_TYPES, AgentState
from prime_spark.tasks.settings import CoordinatorConfig
from support import eventually, free_port


@pytest.fixture
def world(redis: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    with running_world(redis, tmp_path, monkeypatch) as found:
        yield found


# -- the coordinator ----------------------------------------------------------------------------


def test_submission(world: World) -> None:
    task_id = world.submit({"prompt": "ü"}, "HIGH")
    status = world.status(task_id)
    assert (status.state, status.attempts, status.owner) == ("PENDING", 0, "ada")
    assert (status.task_type, status.priority, status.agent) == ("llm", "HIGH", None)
    assert abs(status.created.timestamp() - time.time()) < 60
    assert world.call("get_task_status", "absent") is None
    assert world.call("health").queued == {"voice_recognition": 0, "voice_synthesis": 0, "llm": 1}
    assert world.call("health").dispatcher is None


def test_same_submission_is_the_same_task(world: World) -> None:
    for _ in range(3):
        assert world.submit({"b": 1, "a": 2}, task_id="mine") == "mine"
    assert world.submit({"a": 2, "b": 1}, task_id="mine") == "mine", "the order says nothing"
    assert world.call("health").queued["llm"] == 1
    for change in ({"owner": "bob"}, {"priority": "LOW"}, {"task_type": "voice_synthesis"}):
        with pytest.raises(TaskConflictError, match="mine"):
            world.submit({"b": 1, "a": 2}, task_id="mine", **change)
    with pytest.raises(TaskConflictError):
        world.submit({"b": 1, "a": 3}, task_id="mine")
    assert world.status("mine").owner == "ada"


def test_bad_submissions(world: World) -> None:
    for arguments, message in (
        ({"task_type": "dance"}, "task_type 'dance' is not one of voice_recognition"),
        ({"priority": "high"}, "priority 'high' is not one of HIGH, NORMAL, LOW"),
        ({"owner": ""}, "owner has 0 characters"),
        ({"task_id": "../x"}, r"task_id '\.\./x' is not allowed"),
        ({"task_id": "x" * 65}, "is not allowed"),
        ({"payload": {"text": "x" * 70_000}}, "payload has 700"),
        ({"payload": {"text": object()}}, "payload is not JSON"),
        ({"payload": {"x": [1.0, float("nan")]}}, "payload is not JSON: NaN and infinities"),
    ):
        with pytest.raises(TaskError, match=message):
            world.submit(**{"payload": {}, **arguments})  # type: ignore[arg-type]


def test_full_queue_takes_no_more(world: World) -> None:
    settings = CoordinatorConfig(max_queued=3)
    for number in range(3):
        world.submit({"n": number}, task_id=f"t{number}", settings=settings)
    with pytest.raises(QueueFullError, match="3 llm tasks wait already"):
        world.submit({"n": 3}, settings=settings)
    assert world.submit({"n": 0}, task_id="t0", settings=settings) == "t0"
    world.submit(task_type="voice_synthesis", settings=settings)
    assert world.call("health").queued == {"voice_recognition": 0, "voice_synthesis": 1, "llm": 3}


def test_redis_down_is_said_and_tasks_survive(world: World) -> None:
    task_id = world.submit()
    with restarted(world.redis):
        for method, arguments in (("get_task_status", ["x"]), ("agents", []), ("health", [])):
            with pytest.raises(CoordinatorUnavailableError):
                world.call(method, *arguments)
        with pytest.raises(CoordinatorUnavailableError):
            world.submit()
    assert world.status(task_id).state == "PENDING"


def test_no_clock_that_steps_fails_a_task(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Pi without a clock of its own starts days behind, and steps once it knows the time."""
    real = time.time
    monkeypatch.setattr("time.time", lambda: real() - 3 * 86400)
    task_id = world.submit()
    monkeypatch.setattr("time.time", lambda: real() + 3 * 86400)

    async def main() -> None:
        config = {**world.redis_config, "username": "dispatcher"}
        redis = redis_client(msgspec.convert(config, RedisConfig))
        fence = await Lease(redis, "me", 10).acquire()
        assert fence is not None
        store = TaskStore(redis, fence, 60)
        assert await store.due("too late") == 0
        attempt = await store.assign(Waiting(task_id, "llm", 0), "a", "1")
        assert attempt is not None
        await store.again(attempt, "x", seconds=0.05, counted=True, tried=[])
        monkeypatch.setattr("time.time", lambda: real() - 3 * 86400)
        deadline = time.monotonic() + 20
        while not (await store.look([])).queues["llm"]:
            assert time.monotonic() < deadline, "a step back delays nothing"
            assert await store.due("too late") == 0
        await redis.aclose()

    asyncio.run(main())
    assert world.status(task_id).state == "PENDING"


def test_what_is_acknowledged_is_on_disk(world: World) -> None:
    """A power cut takes what Redis has only written; here it never brings anything to the disk."""
    task_id = world.submit(task_id="first")
    with Redis.from_url(world.redis.url) as administrator:
        administrator.config_set("appendfsync", "no")
        try:
            for _ in range(2):
                with pytest.raises(CoordinatorUnavailableError, match="not on the disk yet"):
                    world.submit(task_id="second")
        finally:
            administrator.config_set("appendfsync", "everysec")
        assert world.submit(task_id="second") == "second"
        administrator.config_set("appendonly", "no")
        try:
            with pytest.raises(CoordinatorUnavailableError, match="appendonly is off"):
                world.submit(task_id="third")
        finally:
            administrator.config_set("appendonly", "yes")
        # Until the file is written again nothing counts as being on the disk.
        eventually(lambda: not administrator.info("persistence")["aof_rewrite_in_progress"])
    assert world.submit(task_id=task_id) == task_id


# -- dispatching --------------------------------------------------------------------------------


def test_tasks_are_done(world: World) -> None:
    world.agent("a")
    dispatcher = world.dispatcher()
    task_id = world.submit({"seconds": 1})
    assert world.until(task_id, "IN_PROGRESS").agent == "a"
    wanted = AgentState("a", True, TASK_TYPES, 1, (task_id,), __version__)
    eventually(lambda: world.call("agents") == [wanted])
    status = world.ended(task_id)
    assert (status.state, status.result, status.error) == ("COMPLETED", {"by": "a", "n": 1}, None)
    assert status.attempts == 1
    assert status.finished is not None
    assert status.created < status.finished
    assert world.call("health").dispatcher
    assert dispatcher.healthy()
    assert dispatcher.metric("prime_spark_dispatcher_tasks_total") == 1
    with Redis.from_url(world.redis.url) as client:
        assert client.ttl(f"tasks:task:{task_id}") > 3600
        assert client.hlen("tasks:active") == client.zcard("tasks:deadlines") == 0
    assert world.submit({"seconds": 1}, task_id=task_id) == task_id
    assert world.status(task_id).state == "COMPLETED", "not done again"
    assert dispatcher.terminate() == 0
    assert world.call("health").dispatcher is None, "the lease is given back"


def test_priorities_then_age(world: World) -> None:
    wanted = ["h1", "h2", "n1", "n2", "l1", "l2"]
    for task_id in ("l1", "n1", "h1", "l2", "h2", "n2"):
        priority = {"h": "HIGH", "n": "NORMAL", "l": "LOW"}[task_id[0]]
        task_type = "llm" if task_id.endswith("1") else "voice_synthesis"
        world.submit({}, priority, task_type, task_id=task_id)
    world.agent("a")
    world.dispatcher()
    for task_id in wanted:
        assert world.ended(task_id).state == "COMPLETED"
    assert [task for _, _, task in world.journal("began")] == wanted


def test_type_without_agent_holds_up_no_other(world: World) -> None:
    for number in range(40):
        world.submit({"n": number}, "HIGH", "voice_synthesis")
    world.agent("a", task_types=["llm"], capacity=2)
    world.dispatcher()
    tasks = [world.submit({"n": number}, "LOW") for number in range(6)]
    assert {world.ended(task_id).state for task_id in tasks} == {"COMPLETED"}
    assert world.call("health").queued["voice_synthesis"] == 40


def test_capacity_is_used_and_not_exceeded(world: World) -> None:
    world.agent("a", capacity=2)
    world.agent("b", capacity=1)
    world.dispatcher()
    eventually(lambda: len(world.call("agents")) == 2)
    tasks = [world.submit({"seconds": 1.0, "n": number}) for number in range(9)]
    most = 0
    while not all(world.status(task).state == "COMPLETED" for task in tasks):
        agents = {agent.name: len(agent.running) for agent in world.call("agents")}
        assert agents["a"] <= 2
        assert agents["b"] <= 1
        most = max(most, sum(agents.values()))
    assert most == 3
    assert not [
        entry for entry in world.journal("asked") if world.journal("asked").count(entry) > 1
    ]


def test_failure_is_tried_on_another_agent(world: World) -> None:
    for name in "abc":
        world.agent(name)
    world.dispatcher()
    status = world.ended(world.submit({"fail": ["a", "b"]}))
    assert status.state == "COMPLETED"
    assert status.result["by"] == "c"
    assert sorted(agent for agent, _, _ in world.journal("began")) in (
        ["a", "b", "c"],
        ["a", "c"],
        ["b", "c"],
        ["c"],
    )
    status = world.ended(world.submit({"fail": ["a", "b", "c"]}))
    assert (status.state, status.attempts) == ("FAILED", 3)
    assert status.error is not None
    assert status.error.startswith("attempt 3 on ")
    assert status.error.endswith(" cannot")
    began = [agent for agent, _, task in world.journal("began") if task == status.task_id]
    assert sorted(began) == ["a", "b", "c"], "each agent once"


def test_retry_waits_for_a_busy_agent_that_has_not_failed(world: World) -> None:
    world.agent("a")
    world.agent("b")
    world.dispatcher()
    long = world.submit({"seconds": 3})
    (busy,) = world.until_begun(long)
    (free,) = {"a", "b"} - {busy}
    status = world.ended(world.submit({"fail": [free]}))
    assert (status.state, status.agent, status.attempts) == ("COMPLETED", busy, 2)


@pytest.mark.parametrize(
    ("payload", "error"),
    [
        ({"fatal": True}, "attempt 1 on a: no use"),
        ({"status": 422}, "attempt 1 on a: status 422: as told"),
    ],
)
def test_the_tasks_own_fault_is_final(world: World, payload: dict[str, Any], error: str) -> None:
    world.agent("a")
    world.agent("b", start=False)
    world.dispatcher()
    status = world.ended(world.submit(payload))
    assert (status.state, status.attempts, status.error) == ("FAILED", 1, error)


def test_what_only_another_agent_could_do_is_not_tried_again_here(world: World) -> None:
    world.agent("a")
    world.dispatcher()
    status = world.ended(world.submit({"unable": ["a"]}))
    assert (status.state, status.attempts, status.error) == (
        "FAILED",
        1,
        "attempt 1 on a: a is not set up",
    )


def test_what_one_agent_cannot_do_another_does_and_the_error_is_gone(world: World) -> None:
    world.agent("a")
    world.agent("b")
    world.dispatcher()
    tasks = [world.submit({"unable": [name]}) for name in ("a", "b")]
    tasks += [world.submit({"fail": [name]}) for name in ("a", "b")]
    ended = [world.ended(task_id) for task_id in tasks]
    assert {(status.state, status.error) for status in ended} == {("COMPLETED", None)}
    assert max(status.attempts for status in ended) == 2, "at least one was tried twice"
    with Redis.from_url(world.redis.url) as administrator:
        for task_id in tasks:
            assert not administrator.hexists(f"tasks:task:{task_id}", "payload"), "takes no room"


def test_wrong_credential_is_the_agents_fault(world: World) -> None:
    agent = world.agent("a")
    dispatcher = world.dispatcher(max_attempts=2)
    (dispatcher.command.folder / "credentials/agent_token").write_text("wrong")
    dispatcher.command.credentials = {"redis_password": "secret", "agent_token": "wrong"}
    dispatcher.kill()
    dispatcher.start()
    status = world.ended(world.submit())
    assert (status.state, status.error) == ("FAILED", "attempt 2 on a: status 401: who are you?")
    assert agent.process is not None
    assert "wrong" not in dispatcher.log.read_text()


def test_unreachable_agent_costs_no_attempt(world: World) -> None:
    """It sends heartbeats, but nobody listens where it should."""
    world.agent("a")
    ports = {"a": free_port(), "b": world.agent("b", start=False).port}
    agents = [{"name": name, "url": f"http://127.0.0.1:{port}"} for name, port in ports.items()]
    world.dispatcher(agents=agents)
    task_id = world.submit()
    eventually(lambda: (world.status(task_id).error or "").startswith("agent a: "))
    world.agents["b"].start()
    status = world.ended(task_id)
    assert (status.state, status.agent, status.attempts) == ("COMPLETED", "b", 1)


def test_killed_agents_task_is_done_by_another(world: World) -> None:
    world.agent("a")
    world.agent("b")
    world.dispatcher()
    task_id = world.submit({"seconds": 1})
    (first,) = world.until_begun(task_id)
    assert world.status(task_id).agent == first
    world.agents[first].signal(signal.SIGKILL)
    status = world.ended(task_id)
    assert (status.state, status.attempts) == ("COMPLETED", 2)
    assert status.agent != first
    assert [entry[0] for entry in world.journal("ended")] == [status.agent], "completed once"
    dead = {agent.name: agent.alive for agent in world.call("agents")}
    assert dead == {first: False, status.agent: True}


def test_completed_task_of_a_killed_agent_is_not_done_again(world: World) -> None:
    world.agent("a")
    world.agent("b")
    world.dispatcher()
    task_id = world.submit({"seconds": 0.3, "vanish": ["a", "b"]})
    status = world.ended(task_id)
    assert (status.state, status.attempts) == ("COMPLETED", 1)
    assert status.result == {"by": status.agent, "n": 1}
    assert len(world.journal("began")) == 1


def test_task_that_kills_its_agents_fails_with_the_reason(world: World) -> None:
    world.agent("a")
    dispatcher = world.dispatcher(max_attempts=2)
    task_id = world.submit({"die": ["a"], "seconds": 0.2})
    world.until_begun(task_id)
    eventually(lambda: world.agents["a"].process.poll() is not None)  # type: ignore[union-attr]
    eventually(lambda: not dispatcher.health()["components"]["agents"]["ok"])
    assert world.until(task_id, "PENDING").error == world.status(task_id).error
    assert "sends no heartbeat" in str(world.status(task_id).error)
    world.agents["a"].start()
    status = world.ended(task_id)
    assert (status.state, status.attempts) == ("FAILED", 2)
    assert "attempt 2 on a: agent a sends no heartbeat" in str(status.error)
    assert world.journal("ended") == []


def test_quickly_restarted_agent_is_noticed(world: World) -> None:
    """Its heartbeat never ran out, but the process that had the task is gone."""
    world.agent("a")
    world.dispatcher()
    task_id = world.submit({"seconds": 1.5})
    world.until_begun(task_id)
    world.agents["a"].signal(signal.SIGKILL)
    world.agents["a"].start()
    status = world.ended(task_id)
    assert status.state == "COMPLETED"
    assert len(world.journal("ended")) == 1


def test_frozen_agent_loses_its_task_and_gives_it_up(world: World) -> None:
    """It neither answers nor closes the connection; thawed, it must not complete the task."""
    world.agent("a")
    world.agent("b")
    world.dispatcher(task_seconds=120.0)
    task_id = world.submit({"seconds": 3})
    (first,) = world.until_begun(task_id)
    world.agents[first].signal(signal.SIGSTOP)
    try:
        (_, second) = world.until_begun(task_id, 2)
        assert second != first
    finally:
        world.agents[first].signal(signal.SIGCONT)
    status = world.ended(task_id)
    assert (status.state, status.agent) == ("COMPLETED", second)
    eventually(lambda: (first, "ended early", task_id) in world.journal())
    assert [entry[0] for entry in world.journal("ended")] == [second]


def test_overlong_task_fails(world: World) -> None:
    world.agent("a")
    world.dispatcher(task_seconds=0.5, grace_seconds=0.2, max_attempts=1)
    status = world.ended(world.submit({"seconds": 30}))
    assert (status.state, status.error) == ("FAILED", "attempt 1 on a: not finished within 0.5 s")


def test_task_that_nobody_takes_fails_in_the_end(world: World) -> None:
    world.agent("a", task_types=["llm"])
    world.dispatcher()
    settings = CoordinatorConfig(queue_seconds=0.5)
    task_id = world.submit({}, "HIGH", "voice_synthesis", settings=settings)
    status = world.ended(task_id)
    assert (status.state, status.error) == ("FAILED", "no agent has done the task in time")
    assert world.call("health").queued["voice_synthesis"] == 0


def test_busy_agent_is_asked_again(world: World) -> None:
    world.agent("a", capacity=1)
    world.dispatcher()
    task_id = world.submit({"status": 503})
    eventually(lambda: world.journal("asked").count(("a", "asked", task_id)) >= 3)
    status = world.status(task_id)
    assert status.attempts <= 1
    assert status.state in {"PENDING", "ASSIGNED", "IN_PROGRESS"}

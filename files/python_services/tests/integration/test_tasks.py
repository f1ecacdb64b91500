"""Tasks from submission to their end: real Redis, dispatchers and agents as processes."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from redis import Redis
from tests.integration.servers import RedisServer

from api_support import create_redis_users
from prime_spark import __version__
from prime_spark.config import RedisConfig
from prime_spark.dispatcher.store import Lease, OvertakenError, TaskStore, Waiting
from prime_spark.runtime.redis_client import redis_client
from prime_spark.tasks.coordinator import (
    AgentCoordinator,
    CoordinatorUnavailableError,
    QueueFullError,
    TaskConflictError,
    TaskError,
)
from prime_spark.tasks.protocol import TASK_TYPES, AgentState, ExecuteAnswer, TaskStatus
from prime_spark.tasks.results import Results
from prime_spark.tasks.settings import CoordinatorConfig
from support import Command, Daemon, eventually, free_port, running

# Short enough for a test, long enough for a busy machine.
BEAT_SECONDS, DEAD_SECONDS = 0.2, 1.5

_numbers = itertools.count(1)


def create_users(server: RedisServer) -> None:
    create_redis_users(server, "api", "dispatcher", "agent", password="secret")


@dataclass
class Agent:
    """An agent's process."""

    name: str
    folder: Path
    redis: dict[str, Any]
    settings: dict[str, Any] = field(default_factory=dict)
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        config = {
            "name": self.name,
            "port": self.port,
            "journal": str(self.folder / "journal"),
            "redis": {**self.redis, "username": "agent"},
            "interval": BEAT_SECONDS,
            "ttl": DEAD_SECONDS,
            **self.settings,
        }
        path = self.folder / f"{self.name}.json"
        path.write_text(json.dumps(config))
        with (self.folder / f"{self.name}.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, Path(__file__).with_name("agent_process.py"), path],
                env={**os.environ, "CREDENTIALS_DIRECTORY": str(self.folder / "credentials")},
                stdout=log,
                stderr=log,
            )

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)
        if number is signal.SIGKILL:
            self.process.wait()


@dataclass
class World:
    """A Redis, agents and dispatchers."""

    redis: RedisServer
    folder: Path
    stack: ExitStack
    agents: dict[str, Agent] = field(default_factory=dict)

    @property
    def redis_config(self) -> dict[str, Any]:
        return {
            "host": self.redis.host,
            "port": self.redis.port,
            "username": "api",
            "credential": "redis_password",
        }

    def agent(self, name: str, *, start: bool = True, **settings: Any) -> Agent:
        agent = self.agents[name] = Agent(name, self.folder, self.redis_config, settings)

        def end() -> None:
            if agent.process is not None:
                agent.process.kill()
                agent.process.wait()

        self.stack.callback(end)
        if start:
            agent.start()
            self.until_alive(name)
        return agent

    def until_alive(self, name: str) -> None:
        with Redis.from_url(self.redis.url) as client:
            eventually(lambda: client.exists(f"agent:{name}"), what=f"agent {name} lives")

    def dispatcher(self, **settings: Any) -> Daemon:
        """Start a dispatcher that knows all agents made so far."""
        folder = self.folder / f"dispatcher{next(_numbers)}"
        folder.mkdir()
        config = {
            "redis": {**self.redis_config, "username": "dispatcher"},
            "agents": [
                {"name": agent.name, "url": f"http://127.0.0.1:{agent.port}"}
                for agent in self.agents.values()
            ],
            "credential": "agent_token",
            "http": {"host": "127.0.0.1", "port": free_port()},
            "lease_seconds": 2.0,
            "poll_seconds": 0.05,
            "agent_dead_seconds": DEAD_SECONDS,
            "task_seconds": 20.0,
            "retry_seconds": 0.1,
            "rest_seconds": 0.5,
            **settings,
        }
        credentials = {"redis_password": "secret", "agent_token": "agent secret"}
        command = Command("dispatcher", folder, config, credentials)
        return self.stack.enter_context(running(command))

    def call(self, method: str, *arguments: Any, settings: Any = None, **keywords: Any) -> Any:
        """Call a method of the coordinator, as the API's user."""

        async def main() -> Any:
            redis = redis_client(msgspec.convert(self.redis_config, RedisConfig), timeout=30)
            try:
                coordinator = AgentCoordinator(redis, settings or CoordinatorConfig())
                return await getattr(coordinator, method)(*arguments, **keywords)
            finally:
                await redis.aclose()

        return asyncio.run(main())

    def submit(
        self,
        payload: dict[str, Any] | None = None,
        priority: str = "NORMAL",
        task_type: str = "llm",
        **keywords: Any,
    ) -> str:
        keywords.setdefault("owner", "ada")
        task_id: str = self.call("submit_task", task_type, priority, payload or {}, **keywords)
        return task_id

    def status(self, task_id: str) -> TaskStatus:
        status = self.call("get_task_status", task_id)
        assert isinstance(status, TaskStatus)
        return status

    def until(self, task_id: str, *states: str, seconds: float = 30) -> TaskStatus:
        def probe() -> TaskStatus | None:
            status = self.status(task_id)
            return status if status.state in states else None

        try:
            return eventually(probe, seconds, f"{task_id} is {'/'.join(states)}")
        except AssertionError:
            raise AssertionError(f"{self.status(task_id)}\n{self.journal()}") from None

    def ended(self, task_id: str, **keywords: Any) -> TaskStatus:
        return self.until(task_id, "COMPLETED", "FAILED", **keywords)

    def journal(self, event: str | None = None) -> list[tuple[str, str, str]]:
        """Return (agent, event, task) of what the agents did."""
        path = self.folder / "journal"
        lines = path.read_text().splitlines() if path.exists() else []
        events = [json.loads(line) for line in lines]
        return [
            (item["agent"], item["event"], item["task"])
            for item in events
            if event in (None, item["event"])
        ]

    def until_begun(self, task_id: str, times: int = 1) -> list[str]:
        """Wait until agents have begun the task so often; return their names."""

        def probe() -> list[str] | None:
            names = [agent for agent, _, task in self.journal("began") if task == task_id]
            return names if len(names) >= times else None

        return eventually(probe, what=f"{task_id} begun {times} times")


@pytest.fixture
def world(redis: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    if not redis.running:
        redis.start()
    with Redis.from_url(redis.url) as administrator:
        administrator.flushall()
        # Otherwise each submission waits for the next second.
        administrator.config_set("appendfsync", "always")
    create_users(redis)
    (tmp_path / "credentials").mkdir()
    (tmp_path / "credentials" / "redis_password").write_text("secret")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path / "credentials"))
    with ExitStack() as stack:
        yield World(redis, tmp_path, stack)


@contextmanager
def restarted(server: RedisServer) -> Iterator[None]:
    """Redis is down within the context, and back with its users afterwards."""
    server.kill()
    try:
        yield
    finally:
        server.start()
        create_users(server)


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
        # Until the file is written anew nothing counts as being on the disk.
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


# -- the dispatcher itself ----------------------------------------------------------------------


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

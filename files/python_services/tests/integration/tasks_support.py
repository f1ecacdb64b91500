"""Dispatchers and agents as processes around a real Redis, for the tests of tasks."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest
from redis import Redis
from tests.integration.servers import RedisServer

from api_support import create_redis_users
from prime_spark.config import RedisConfig
from prime_spark.runtime.redis_client import redis_client
from prime_spark.tasks.coordinator import (
    AgentCoordinator,
)
from prime_spark.tasks.protocol import TaskStatus
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
            "cooldown_seconds": 0.5,
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


@contextmanager
def running_world(
    redis: RedisServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[World]:
    """A Redis without tasks, and what was started of the world until the end of the context."""
    if not redis.running:
        redis.start()
    with Redis.from_url(redis.url) as administrator:
        administrator.flushall()
        # Otherwise each submission waits for the next second.
        administrator.config_set("appendfsync", "always")
    create_users(redis)
    (folder / "credentials").mkdir()
    (folder / "credentials" / "redis_password").write_text("secret")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(folder / "credentials"))
    with ExitStack() as stack:
        yield World(redis, folder, stack)


@contextmanager
def restarted(server: RedisServer) -> Iterator[None]:
    """Redis is down within the context, and back with its users afterwards."""
    server.kill()
    try:
        yield
    finally:
        server.start()
        create_users(server)

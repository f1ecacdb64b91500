"""A stand-in for the Spark agent: the dispatcher's protocol, and tasks that only take their time.

`python agent_process.py CONFIG.json`. What a task does stands in its payload:

    seconds   how long it takes
    status    answer with this HTTP status, without beginning
    fail      names of the agents on which it fails, may be tried again
    unable    names of the agents that cannot do it, not now and not later
    fatal     fails for good
    die       names of the agents that are killed before they complete it
    vanish    names of the agents that are killed when they have completed it, before they say so

Each event is one line of JSON in the journal: asked, began, ended, ended a task early.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import msgspec
import uvicorn

from prime_spark.config import RedisConfig
from prime_spark.runtime.notify import Notifier
from prime_spark.runtime.redis_client import REDIS_ERRORS, redis_client
from prime_spark.runtime.service import Service
from prime_spark.tasks.heartbeat import Heartbeat
from prime_spark.tasks.protocol import TASK_TYPES, ExecuteAnswer, ExecuteRequest
from prime_spark.tasks.results import Results


class Agent:
    def __init__(self, config: dict[str, Any]) -> None:
        self.name: str = config["name"]
        self.journal = Path(config["journal"])
        self.capacity: int = config.get("capacity", 1)
        redis = redis_client(msgspec.convert(config["redis"], RedisConfig))
        self.results = Results(redis)
        self.heartbeat = Heartbeat(
            redis,
            self.name,
            task_types=config.get("task_types", TASK_TYPES),
            capacity=self.capacity,
            interval=config["interval"],
            ttl=config["ttl"],
        )
        self.tasks: dict[str, asyncio.Task[ExecuteAnswer]] = {}

    def note(self, event: str, task: str) -> None:
        line = {"agent": self.name, "event": event, "task": task}
        with self.journal.open("a") as journal:
            journal.write(json.dumps(line) + "\n")

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request (ASGI)."""
        if scope["type"] != "http":
            return
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        status, answer = await self.execute(dict(scope["headers"]), body)
        headers = [(b"retry-after", b"0.2")] if status == 503 else []
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    async def execute(self, headers: dict[bytes, bytes], body: bytes) -> tuple[int, bytes]:
        if headers.get(b"authorization") != b"Bearer agent secret":
            return 401, b"who are you?"
        task = msgspec.json.decode(body, type=ExecuteRequest)
        self.note("asked", task.task_id)
        if status := task.payload.get("status"):
            return status, b"as told"
        if task.task_id not in self.tasks:
            if len(self.heartbeat.running) >= self.capacity:
                return 503, b"busy"
            self.tasks[task.task_id] = asyncio.create_task(self.work(task))
        try:
            answer = await asyncio.shield(self.tasks[task.task_id])
        except asyncio.CancelledError:
            return 500, b"ended early"
        if answer.status == "failed":
            self.tasks.pop(task.task_id, None)
        return 200, msgspec.json.encode(answer)

    async def work(self, task: ExecuteRequest) -> ExecuteAnswer:
        payload, identifier = task.payload, task.task_id
        self.heartbeat.running.add(identifier)
        self.note("began", identifier)
        try:
            await asyncio.sleep(payload.get("seconds", 0))
            if self.name in payload.get("die", ()):
                os.kill(os.getpid(), signal.SIGKILL)
            if payload.get("fatal"):
                return ExecuteAnswer(identifier, "failed", error="no use", retryable=False)
            if self.name in payload.get("unable", ()):
                reason = f"{self.name} is not set up"
                return ExecuteAnswer(identifier, "failed", error=reason, unable=True)
            if self.name in payload.get("fail", ()):
                return ExecuteAnswer(identifier, "failed", error=f"{self.name} cannot")
            answer = ExecuteAnswer(identifier, "completed", {"by": self.name, "n": task.attempt})
            with contextlib.suppress(*REDIS_ERRORS):
                answer = await self.results.commit(answer)
            self.note("ended", identifier)
            if self.name in payload.get("vanish", ()):
                os.kill(os.getpid(), signal.SIGKILL)
            return answer
        finally:
            self.heartbeat.running.discard(identifier)

    async def give_up_when_expired(self) -> None:
        while True:
            await asyncio.sleep(0.05)
            if self.heartbeat.expired:
                for identifier in list(self.heartbeat.running):
                    self.note("ended early", identifier)
                    self.tasks.pop(identifier).cancel()


async def main(config: dict[str, Any]) -> None:
    agent = Agent(config)
    service = Service(Notifier({}), stall_seconds=60)
    await agent.heartbeat.send()
    beating = asyncio.create_task(agent.heartbeat.run(service))
    watching = asyncio.create_task(agent.give_up_when_expired())
    server = uvicorn.Server(
        uvicorn.Config(
            agent, host="127.0.0.1", port=config["port"], log_level="warning", lifespan="off"
        )
    )
    await server.serve()
    for task in (beating, watching):
        task.cancel()


if __name__ == "__main__":
    asyncio.run(main(json.loads(Path(sys.argv[1]).read_text())))

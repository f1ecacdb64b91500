"""The executor's promises about one task id, seen without a process around it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from prime_spark.agent.errors import BusyError, ConflictError
from prime_spark.agent.executor import Executor
from prime_spark.agent.metrics import AgentMetrics
from prime_spark.agent.settings import LimitsConfig
from prime_spark.agent.store import AnswerStore
from prime_spark.tasks.protocol import ExecuteRequest


class Speaker:
    """A handler that ends when it is told to."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.end = asyncio.Event()
        self.result: dict[str, Any] | None = None

    async def __call__(self, task_id: str, payload: Any) -> dict[str, Any]:
        self.begun.append(task_id)
        await self.end.wait()
        return self.result or {"text": payload.text}


def request(text: str = "hello", task_id: str = "task-1") -> ExecuteRequest:
    return ExecuteRequest(
        task_id=task_id, task_type="voice_synthesis", priority="NORMAL", payload={"text": text}
    )


def with_executor(
    folder: Path, check: Callable[[Executor, Speaker, set[str]], Awaitable[None]]
) -> None:
    async def go() -> None:
        speaker = Speaker()
        running: set[str] = set()
        store = AnswerStore(folder / "tasks.sqlite")
        executor = Executor(
            {"voice_synthesis": speaker},
            store,
            LimitsConfig(),
            AgentMetrics(CollectorRegistry()),
            running=running,
        )
        try:
            await check(executor, speaker, running)
        finally:
            await executor.stop(0)
            store.close()

    asyncio.run(asyncio.wait_for(go(), 20))


async def begun(speaker: Speaker) -> None:
    while not speaker.begun:
        await asyncio.sleep(0.005)


def test_another_content_under_the_same_id_while_it_runs(tmp_path: Path) -> None:
    async def check(executor: Executor, speaker: Speaker, running: set[str]) -> None:
        first = asyncio.create_task(executor.execute(request()))
        await begun(speaker)
        with pytest.raises(ConflictError, match="under way with another content"):
            await asyncio.wait_for(executor.execute(request("other")), 1)
        speaker.end.set()
        assert (await first).result == {"text": "hello"}

    with_executor(tmp_path, check)


def test_a_task_outlives_whoever_asked(tmp_path: Path) -> None:
    async def check(executor: Executor, speaker: Speaker, running: set[str]) -> None:
        first = asyncio.create_task(executor.execute(request()))
        await begun(speaker)
        first.cancel()
        await asyncio.wait([first])
        assert first.cancelled()
        assert running == {"task-1"}
        again = asyncio.create_task(executor.execute(request()))
        await asyncio.sleep(0)
        speaker.end.set()
        assert (await again).status == "completed"
        assert speaker.begun == ["task-1"]
        await asyncio.sleep(0)
        assert running == set()

    with_executor(tmp_path, check)


def test_a_result_that_json_cannot_express_is_a_failure(tmp_path: Path) -> None:
    async def check(executor: Executor, speaker: Speaker, running: set[str]) -> None:
        speaker.end.set()
        speaker.result = {"seconds": float("nan")}
        answer = await executor.execute(request())
        assert (answer.status, answer.retryable) == ("failed", False)
        assert answer.error == "the result is not JSON: NaN and infinities cannot be expressed"

    with_executor(tmp_path, check)


def test_a_stopped_executor_takes_nothing(tmp_path: Path) -> None:
    async def check(executor: Executor, speaker: Speaker, running: set[str]) -> None:
        first = asyncio.create_task(executor.execute(request()))
        await begun(speaker)
        await executor.stop(0)
        answer = await first
        assert (answer.status, answer.error) == ("failed", "the agent is stopping")
        assert answer.retryable
        with pytest.raises(BusyError, match="stopping"):
            await executor.execute(request(task_id="task-2"))

    with_executor(tmp_path, check)

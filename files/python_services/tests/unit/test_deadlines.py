"""Calls that share one deadline: each has its whole time; other cancellations are not lost."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from prime_spark.runtime.deadlines import Deadlines


async def _bounded(deadlines: Deadlines, work: Awaitable[str]) -> str:
    with deadlines.bound():
        return await work


def test_what_is_quick_is_returned_and_leaves_nothing_behind() -> None:
    async def go() -> None:
        deadlines = Deadlines(0.5)
        for _ in range(3):
            assert await _bounded(deadlines, asyncio.sleep(0.001, "done")) == "done"
        # Longer than the deadline of them all: none is cancelled after it has ended.
        assert await asyncio.sleep(0.6, "on") == "on"
        assert await _bounded(deadlines, asyncio.sleep(0.001, "again")) == "again"

    asyncio.run(go())


def test_what_is_slow_runs_out_of_time_and_the_task_goes_on() -> None:
    async def go() -> None:
        deadlines = Deadlines(0.02)
        for _ in range(2):
            with pytest.raises(TimeoutError, match=r"no answer within 0\.02 s"):
                await _bounded(deadlines, asyncio.Event().wait())  # type: ignore[arg-type]
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        assert await asyncio.sleep(0.001, "on") == "on"

    asyncio.run(go())


def test_each_call_has_its_whole_time() -> None:
    """One that begins while others wait is not cancelled with them."""

    async def go() -> None:
        loop = asyncio.get_running_loop()
        deadlines = Deadlines(1.0)
        took: dict[str, float] = {}

        async def hang(name: str) -> None:
            started = loop.time()
            with pytest.raises(TimeoutError):
                await _bounded(deadlines, loop.create_future())
            took[name] = loop.time() - started

        async with asyncio.TaskGroup() as group:
            group.create_task(hang("first"))
            await asyncio.sleep(0.5)
            answered = group.create_task(_bounded(deadlines, asyncio.sleep(0.6, "in time")))
            group.create_task(hang("second"))
        assert answered.result() == "in time"
        assert min(took.values()) >= 1.0

    asyncio.run(go())


def _cancel_first(task: asyncio.Task[str], expire: Callable[[], None]) -> None:
    task.cancel()
    expire()


def _expire_first(task: asyncio.Task[str], expire: Callable[[], None]) -> None:
    expire()
    task.cancel()


@pytest.mark.parametrize("both", [_cancel_first, _expire_first])
def test_a_cancellation_goes_on_although_the_time_is_up_as_well(
    both: Callable[[asyncio.Task[str], Callable[[], None]], None],
) -> None:
    async def go() -> None:
        deadlines = Deadlines(0.0)
        task = asyncio.create_task(_bounded(deadlines, asyncio.Future()))
        await asyncio.sleep(0)  # it waits now; its time is up with the loop's next turn
        both(task, deadlines._look)
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()

    asyncio.run(go())


def test_a_cancellation_alone_goes_on() -> None:
    async def go() -> None:
        task = asyncio.create_task(_bounded(Deadlines(10), asyncio.Future()))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(go())

"""Many callers of one client, against a real Redis that errs, hangs, goes away and comes back."""

from __future__ import annotations

import asyncio
import functools
import os
import signal
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from lab.servers import RedisServer
from prime_spark.runtime.shared_redis import SharedRedis

CALLERS = 40
EXPECTED = [str(n).encode() for n in range(CALLERS)]


def on_a_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test on an event loop of its own; its fixtures stay its arguments."""

    @functools.wraps(test)
    def run(*arguments: Any, **fixtures: Any) -> None:
        asyncio.run(asyncio.wait_for(test(*arguments, **fixtures), 20))

    return run


@asynccontextmanager
async def client(server: RedisServer, seconds: float = 10.0) -> AsyncIterator[SharedRedis]:
    shared = SharedRedis(
        seconds=seconds,
        host=server.host,
        port=server.port,
        username=server.username,
        password=server.password,
        retry=Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,)),
    )
    try:
        yield shared
    finally:
        await shared.aclose()


@contextmanager
def hung(server: RedisServer) -> Iterator[None]:
    """Redis takes connections and answers nothing."""
    os.kill(server.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server.pid, signal.SIGCONT)


async def fill(shared: SharedRedis) -> None:
    await asyncio.gather(*(shared.set(f"key:{n}", n) for n in range(CALLERS)))


async def ask(shared: SharedRedis, callers: int = CALLERS) -> list[bytes | None]:
    return list(await asyncio.gather(*(shared.get(f"key:{n}") for n in range(callers))))


@on_a_loop
async def test_everybody_gets_their_own_answer_over_few_connections(redis: RedisServer) -> None:
    async with client(redis) as shared:
        await fill(shared)
        for callers in (*range(CALLERS), CALLERS):
            assert await ask(shared, callers) == EXPECTED[:callers]
        assert int((await shared.info("clients"))["connected_clients"]) <= 3


@on_a_loop
async def test_an_error_is_its_own_callers(redis: RedisServer) -> None:
    async with client(redis) as shared:
        await fill(shared)
        await shared.delete("list")
        await shared.lpush("list", "element")
        keys = ["list" if n % 7 == 3 else f"key:{n}" for n in range(CALLERS)]
        calls = [asyncio.ensure_future(shared.get(key)) for key in keys]
        await asyncio.wait(calls)
        for n, call in enumerate(calls):
            if keys[n] == "list":
                with pytest.raises(ResponseError, match="WRONGTYPE"):
                    await call
            else:
                assert await call == EXPECTED[n]


@on_a_loop
async def test_a_caller_that_goes_away_takes_nobody_along(redis: RedisServer) -> None:
    async with client(redis) as shared:
        await fill(shared)
        with hung(redis):
            calls = [asyncio.ensure_future(shared.get(f"key:{n}")) for n in range(CALLERS)]
            for call in calls[:10]:  # before anything of it is sent
                call.cancel()
            await asyncio.wait(calls, timeout=0.2)
            for call in calls[10:20]:  # while it is on the way
                call.cancel()
            await asyncio.wait(calls[10:20])
        assert await asyncio.gather(*calls[20:]) == EXPECTED[20:]
        assert all(call.cancelled() for call in calls[:20])
        assert await ask(shared) == EXPECTED


@on_a_loop
async def test_a_redis_that_hangs_costs_everybody_the_limit_and_confuses_no_answers(
    redis: RedisServer,
) -> None:
    async with client(redis, seconds=0.3) as shared:
        await fill(shared)
        with hung(redis):
            calls = [shared.get(f"key:{n}") for n in range(CALLERS)]
            async with asyncio.timeout(10):
                answers = await asyncio.gather(*calls, return_exceptions=True)
            assert {type(answer) for answer in answers} == {TimeoutError}
        # What it says late is for nobody.
        async with asyncio.timeout(30):
            while True:
                answers = await asyncio.gather(
                    *(shared.get(f"key:{n}") for n in reversed(range(CALLERS))),
                    return_exceptions=True,
                )
                if TimeoutError not in {type(answer) for answer in answers}:
                    break
        assert answers == EXPECTED[::-1]


@on_a_loop
async def test_a_redis_that_is_away_is_said_to_everybody_and_found_again(
    redis: RedisServer,
) -> None:
    async with client(redis) as shared:
        await fill(shared)
        redis.kill()
        try:
            calls = [shared.get(f"key:{n}") for n in range(CALLERS)]
            answers = await asyncio.gather(*calls, return_exceptions=True)
            assert all(isinstance(answer, RedisConnectionError) for answer in answers)
        finally:
            redis.start()
        assert await ask(shared) == EXPECTED  # its append-only file keeps them


@on_a_loop
async def test_connections_that_redis_closed_meanwhile_are_replaced(redis: RedisServer) -> None:
    async with client(redis) as shared:
        await fill(shared)
        redis.kill()
        redis.start()
        assert await ask(shared) == EXPECTED


@on_a_loop
async def test_a_loop_that_ends_leaves_nobody_waiting(redis: RedisServer) -> None:
    async with client(redis) as shared:
        await fill(shared)
        with hung(redis):
            before = asyncio.all_tasks()
            calls = [asyncio.ensure_future(shared.get(f"key:{n}")) for n in range(CALLERS)]
            await asyncio.wait(calls, timeout=0.2)
            for task in asyncio.all_tasks() - before - set(calls[1:]):
                task.cancel()  # the one that went alone, and the task that carries the others
            async with asyncio.timeout(10):
                answers = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(answer) for answer in answers} == {asyncio.CancelledError}


@on_a_loop
async def test_the_limit_holds_for_connecting_too(redis: RedisServer) -> None:
    async with client(redis, seconds=0.2) as shared:
        with hung(redis), pytest.raises(TimeoutError):
            await shared.get("key:1")

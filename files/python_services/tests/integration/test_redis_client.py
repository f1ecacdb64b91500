"""Many callers of one client, against a real Redis that errs, hangs, goes away and comes back."""

from __future__ import annotations

import asyncio
import functools
import os
import signal
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError
from tests.integration.servers import RedisServer

from prime_spark.config import RedisConfig
from prime_spark.runtime.redis_client import gathering_redis_client, redis_client

CALLERS = 40
EXPECTED = [str(n).encode() for n in range(CALLERS)]


def on_a_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test on an event loop of its own; its fixtures stay its arguments."""

    @functools.wraps(test)
    def run(*arguments: Any, **fixtures: Any) -> None:
        asyncio.run(asyncio.wait_for(test(*arguments, **fixtures), 120))

    return run


TIMEOUTS = {TimeoutError, RedisTimeoutError}
Connect = Callable[..., AbstractAsyncContextManager[Redis]]


@pytest.fixture(params=[redis_client, gathering_redis_client])
def connect(
    redis: RedisServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> Connect:
    """A client of the one kind and of the other, for as long as the context lasts."""
    (tmp_path / "redis").write_text(redis.password)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    config = RedisConfig(
        host=redis.host, port=redis.port, username=redis.username, credential="redis"
    )

    @asynccontextmanager
    async def client(seconds: float = 10.0) -> AsyncIterator[Redis]:
        connected = request.param(config, timeout=seconds)
        try:
            yield connected
        finally:
            await connected.aclose()

    return client


@contextmanager
def hung(server: RedisServer) -> Iterator[None]:
    """Redis takes connections and answers nothing."""
    os.kill(server.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server.pid, signal.SIGCONT)


async def fill(shared: Redis) -> None:
    await asyncio.gather(*(shared.set(f"key:{n}", n) for n in range(CALLERS)))


async def ask(shared: Redis, callers: int = CALLERS) -> list[bytes | None]:
    return list(await asyncio.gather(*(shared.get(f"key:{n}") for n in range(callers))))


@on_a_loop
async def test_any_number_of_callers_get_their_answers_over_few_connections(
    redis: RedisServer, connect: Connect
) -> None:
    async with connect() as shared:
        await fill(shared)
        expected = EXPECTED * 10
        with hung(redis):  # so that nobody is answered before everybody has asked
            calls = []
            for n in range(len(expected)):
                calls.append(asyncio.ensure_future(shared.get(f"key:{n % CALLERS}")))
                await asyncio.sleep(0)
        answers = await asyncio.gather(*calls, return_exceptions=True)
        failed = [answer for answer in answers if isinstance(answer, Exception)]
        assert not failed, f"{len(failed)} of {len(answers)}: {failed[0]}"
        assert answers == expected
        assert int((await shared.info("clients"))["connected_clients"]) <= 70


@on_a_loop
async def test_an_error_is_its_own_callers(redis: RedisServer, connect: Connect) -> None:
    async with connect() as shared:
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
async def test_a_caller_that_goes_away_takes_nobody_along(
    redis: RedisServer, connect: Connect
) -> None:
    async with connect() as shared:
        await fill(shared)
        with hung(redis):
            calls = [asyncio.ensure_future(shared.get(f"key:{n}")) for n in range(CALLERS)]
            for call in calls[:10]:  # before anything of it is sent
                call.cancel()
            # While one is on the way and the others wait for it; then, while the others are.
            for first in (10, 20):
                await asyncio.wait(calls, timeout=0.2)
                for call in calls[first : first + 10]:
                    call.cancel()
                await asyncio.wait(calls[first : first + 10])
        assert await asyncio.gather(*calls[30:]) == EXPECTED[30:]
        assert all(call.cancelled() for call in calls[:30])
        assert await ask(shared) == EXPECTED


async def answers_within_the_limit(shared: Redis, numbers: Sequence[int]) -> list[Any]:
    """Ask until all are answered in time, which a busy machine misses now and then."""
    async with asyncio.timeout(30):
        while True:
            calls = [shared.get(f"key:{n}") for n in numbers]
            answers = await asyncio.gather(*calls, return_exceptions=True)
            if TIMEOUTS.isdisjoint({type(answer) for answer in answers}):
                return answers


@on_a_loop
async def test_a_redis_that_hangs_costs_everybody_the_limit_and_confuses_no_answers(
    redis: RedisServer, connect: Connect
) -> None:
    async with connect() as patient:
        await fill(patient)
    async with connect(seconds=0.3) as shared:
        assert await answers_within_the_limit(shared, range(CALLERS)) == EXPECTED
        with hung(redis):
            calls = [shared.get(f"key:{n}") for n in range(CALLERS)]
            async with asyncio.timeout(30):
                answers = await asyncio.gather(*calls, return_exceptions=True)
            assert {type(answer) for answer in answers} <= TIMEOUTS
        # What it says late is for nobody.
        backwards = range(CALLERS)[::-1]
        assert await answers_within_the_limit(shared, backwards) == EXPECTED[::-1]


@on_a_loop
async def test_a_redis_that_is_away_is_said_to_everybody_and_found_again(
    redis: RedisServer, connect: Connect
) -> None:
    async with connect() as shared:
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
async def test_connections_that_redis_closed_meanwhile_are_replaced(
    redis: RedisServer, connect: Connect
) -> None:
    async with connect() as shared:
        await fill(shared)
        # In a thread, as it happens elsewhere: the event loop sees the connections end.
        await asyncio.to_thread(redis.kill)
        await asyncio.to_thread(redis.start)
        assert await ask(shared) == EXPECTED


@on_a_loop
async def test_the_limit_holds_for_connecting_too(redis: RedisServer, connect: Connect) -> None:
    async with connect(seconds=0.2) as shared:
        with hung(redis), pytest.raises((TimeoutError, RedisTimeoutError)):
            await shared.get("key:1")

"""A Redis client for many short commands at the same time."""

from __future__ import annotations

import asyncio
from typing import Any

from redis.asyncio import Redis

from prime_spark.runtime.deadlines import Deadlines

_ALONE = object()


class SharedRedis(Redis):
    """Sends together what is asked during one turn of the event loop, and bounds each command.

    While no other command is on the way, one goes at once and by itself. Otherwise it waits for
    the end of the turn; whatever came until then shares a connection, a write and a read.

    `seconds` bounds a command as a whole, connecting included; TimeoutError is raised then. An
    error of one command is its own, the loss of a connection is everybody's who shared it. For
    commands that answer at once and need no order among callers: none that blocks, subscribes or
    watches. Belongs to one event loop.
    """

    def __init__(self, *, seconds: float, **options: Any) -> None:
        super().__init__(socket_timeout=None, socket_connect_timeout=seconds, **options)
        self._deadlines = Deadlines(seconds)
        self._on_the_way = 0
        self._waiting: list[_Command] = []
        self._flights: set[asyncio.Task[None]] = set()

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Send a command; return its answer."""
        if self._on_the_way:
            loop = asyncio.get_running_loop()
            answer: asyncio.Future[Any] = loop.create_future()
            if not self._waiting:
                loop.call_soon(self._depart)
            self._waiting.append((args, options, answer))
            found = await answer
            if found is not _ALONE:
                return found
        self._on_the_way += 1
        try:
            with self._deadlines.bound():
                return await super().execute_command(*args, **options)  # type: ignore[no-untyped-call]
        finally:
            self._on_the_way -= 1

    def _depart(self) -> None:
        # Whoever went away meanwhile wants no answer.
        commands = [command for command in self._waiting if not command[2].done()]
        self._waiting.clear()
        if len(commands) == 1:
            commands[0][2].set_result(_ALONE)
        elif commands:
            flight = asyncio.ensure_future(self._fly(commands))
            self._flights.add(flight)
            flight.add_done_callback(self._flights.discard)

    async def _fly(self, commands: list[_Command]) -> None:
        answers: list[Any]
        self._on_the_way += 1
        try:
            with self._deadlines.bound():
                async with self.pipeline(transaction=False) as pipeline:
                    for args, options, _ in commands:
                        pipeline.execute_command(*args, **options)
                    answers = await pipeline.execute(raise_on_error=False)
        except Exception as error:  # noqa: BLE001 (whatever it is, everybody who waits is told)
            answers = [error] * len(commands)
        except BaseException:  # cancelled, like every task of a loop that ends
            for _, _, answer in commands:
                answer.cancel()
            raise
        finally:
            self._on_the_way -= 1
        for (_, _, answer), found in zip(commands, answers, strict=True):
            if answer.done():
                continue
            if isinstance(found, Exception):
                answer.set_exception(found)
            else:
                answer.set_result(found)


_Command = tuple[tuple[Any, ...], dict[str, Any], "asyncio.Future[Any]"]

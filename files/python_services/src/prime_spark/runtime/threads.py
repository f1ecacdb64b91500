"""Blocking calls off the event loop, bounded in time and in number."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class BoundedCalls:
    """Runs calls that may hang, a file system's say, each in a thread of its own.

    At most `max_calls` threads exist; a call that hangs keeps its permit until it returns, and
    once all permits are taken further calls give up without a thread. The threads are daemons: one
    that hangs does not keep the process from ending (a ThreadPoolExecutor's would).
    """

    def __init__(self, name: str, max_calls: int, seconds: float) -> None:
        self._name = name
        self._seconds = seconds
        self._permits = asyncio.Semaphore(max_calls)
        self._running = 0

    @property
    def running(self) -> int:
        """How many calls have not returned, given up or not."""
        return self._running

    async def run(self, call: Callable[[], T]) -> T:
        """Return what `call` returns, or raise what it raises; TimeoutError after `seconds`.

        A call that was given up still runs: what it was to change may be changed later.
        """
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._seconds):
                await self._permits.acquire()
                self._running += 1
                result: asyncio.Future[T] = loop.create_future()
                result.add_done_callback(_take_note)
                thread = threading.Thread(
                    target=_work, args=(loop, result, call, self._release), name=self._name
                )
                thread.daemon = True
                try:
                    thread.start()
                except RuntimeError:  # no more threads for this process
                    self._release()
                    raise TimeoutError("no thread to be had") from None
                return await asyncio.shield(result)
        except TimeoutError:
            raise TimeoutError(
                f"no answer within {self._seconds:g} s ({self._running} calls hang)"
            ) from None

    def _release(self) -> None:
        self._running -= 1
        self._permits.release()


def _work(
    loop: asyncio.AbstractEventLoop,
    result: asyncio.Future[T],
    call: Callable[[], T],
    release: Callable[[], None],
) -> None:
    """Thread: make the call and hand its outcome to the event loop, if that is still there."""
    answer: T | None = None
    error: Exception | None = None
    try:
        answer = call()
    except Exception as raised:  # noqa: BLE001 (handed over to whoever waits)
        error = raised

    def finish() -> None:
        release()
        if result.done():
            return
        if error is not None:
            result.set_exception(error)
        else:
            result.set_result(answer)  # type: ignore[arg-type]

    with contextlib.suppress(RuntimeError):  # the loop has ended
        loop.call_soon_threadsafe(finish)


def _take_note(future: asyncio.Future[T]) -> None:
    if not future.cancelled():
        future.exception()

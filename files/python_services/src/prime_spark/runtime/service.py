"""The life of a service process: start, run until told to stop, drain, exit."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from prime_spark.runtime.notify import Notifier

_log = structlog.get_logger(__name__)

T = TypeVar("T")

_CANCEL_SECONDS = 2.0


class StoppedError(Exception):
    """The service was told to stop before something was done."""


class Service:
    """What a running service is given: the stop signal, readiness, and proof of life.

    Each long-running loop calls `beat` at least every `stall_seconds`. The systemd watchdog is
    fed only while all of them do, so a loop that hangs gets the service restarted, not just one
    that blocks the event loop.
    """

    def __init__(self, notifier: Notifier, *, stall_seconds: float) -> None:
        self.stop = asyncio.Event()
        self._notifier = notifier
        self._stall_seconds = stall_seconds
        self._beats: dict[str, float] = {}

    def ready(self, status: str = "") -> None:
        """Tell systemd that the service is up."""
        self._notifier.ready()
        if status:
            self._notifier.status(status)
        _log.info("ready")

    def beat(self, loop: str) -> None:
        """Record that `loop` is making progress (or waiting on purpose)."""
        self._beats[loop] = time.monotonic()

    def stalled(self) -> list[str]:
        """Return the loops that have not sent a heartbeat in time."""
        limit = time.monotonic() - self._stall_seconds
        return [loop for loop, beat in self._beats.items() if beat < limit]

    async def pause(self, seconds: float) -> bool:
        """Sleep, but return True at once when the service is told to stop."""
        try:
            async with asyncio.timeout(max(seconds, 0)):
                await self.stop.wait()
        except TimeoutError:
            return False
        return True

    async def unless_stopped(self, awaitable: Awaitable[T]) -> T:
        """Await, but give up with StoppedError when the service is told to stop."""
        task = asyncio.ensure_future(awaitable)
        stopping = asyncio.create_task(self.stop.wait())
        try:
            await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
            if not task.done():
                _abandon(task)
        if task.cancelled() or not task.done():
            raise StoppedError
        return task.result()

    async def feed_watchdog(self) -> None:
        """Tell systemd that the service is alive, for as long as it is."""
        interval = self._notifier.watchdog_seconds
        while interval is not None:
            if loops := self.stalled():
                _log.error("stalled", loops=loops)
            else:
                self._notifier.watchdog()
            await asyncio.sleep(interval)


def run_service(
    main: Callable[[Service], Awaitable[None]],
    *,
    drain_seconds: float = 15.0,
    stall_seconds: float = 120.0,
    new_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop,
) -> int:
    """Run `main` until it ends; return the exit status of the process.

    SIGTERM or SIGINT set `Service.stop`; `main` then has `drain_seconds` to finish what it holds
    before it is cancelled. Keep that below the unit's TimeoutStopSec.
    """
    loop = new_loop()
    asyncio.set_event_loop(loop)
    try:
        return loop.run_until_complete(_run(main, Notifier(), drain_seconds, stall_seconds))
    finally:
        # Unlike asyncio.run, which waits for every leftover task: some wait for a dead server.
        if leftovers := asyncio.all_tasks(loop):
            for task in leftovers:
                task.cancel()
            loop.run_until_complete(asyncio.wait(leftovers, timeout=_CANCEL_SECONDS))
        asyncio.set_event_loop(None)
        loop.close()


async def _run(
    main: Callable[[Service], Awaitable[None]],
    notifier: Notifier,
    drain_seconds: float,
    stall_seconds: float,
) -> int:
    service = Service(notifier, stall_seconds=stall_seconds)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, service.stop.set)
    work = asyncio.ensure_future(main(service))
    watchdog = asyncio.create_task(service.feed_watchdog())
    stopping = asyncio.create_task(service.stop.wait())
    try:
        await asyncio.wait({work, stopping}, return_when=asyncio.FIRST_COMPLETED)
        notifier.stopping()
        if not work.done():
            _log.info("stopping")
            await asyncio.wait({work}, timeout=drain_seconds)
        if not work.done():
            _log.error("did not finish in time, cancelling", seconds=drain_seconds)
            work.cancel()
            await asyncio.wait({work}, timeout=_CANCEL_SECONDS)
            return 1
        return _outcome(work)
    finally:
        for task in (watchdog, stopping):
            task.cancel()


def _outcome(work: asyncio.Future[None]) -> int:
    """Return the exit status for a finished service, and log what ended it."""
    if work.cancelled():
        return 1
    error = work.exception()
    if error is not None:
        _log.error("failed", exc_info=error)
        return 1
    _log.info("stopped")
    return 0


async def within(seconds: float, awaitable: Awaitable[T]) -> T:
    """Await with a deadline; TimeoutError says so.

    The awaited task is abandoned, not awaited, when it ignores its cancellation: some client
    libraries wait for a dead server while being cancelled.
    """
    task = asyncio.ensure_future(awaitable)
    try:
        done, _ = await asyncio.wait({task}, timeout=seconds)
    except asyncio.CancelledError:
        _abandon(task)
        raise
    if done:
        return task.result()
    _abandon(task)
    raise TimeoutError(f"no answer within {seconds:g} s")


async def close_within(seconds: float, closing: Awaitable[None]) -> None:
    """Wait for a client to close, for so long; then let it go on by itself. Never raises.

    A client whose closing is broken off keeps tasks that reconnect and may act in its old name.
    """
    task = asyncio.ensure_future(closing)
    _closing.add(task)
    task.add_done_callback(_closing.discard)
    task.add_done_callback(_swallow)
    await asyncio.wait({task}, timeout=seconds)


_closing: set[asyncio.Future[None]] = set()  # the event loop itself keeps no strong reference


def _abandon(task: asyncio.Future[T]) -> None:
    task.cancel()
    task.add_done_callback(_swallow)


def _swallow(task: asyncio.Future[T]) -> None:
    """Take note of an exception that nobody waits for."""
    if not task.cancelled():
        task.exception()

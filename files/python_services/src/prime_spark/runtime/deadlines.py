"""One deadline for many short calls."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, cast


class Deadlines:
    """Bounds calls that may all take the same time, as `asyncio.timeout` would.

    That makes a timer for each call and has the event loop sort them. Calls that may take equally
    long run out in the order in which they began, so one timer that looks at the oldest is enough.
    Belongs to one event loop.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._calls: deque[_Call] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def bound(self) -> _Call:
        """Return a context that raises TimeoutError in the place of what ran out of time in it."""
        loop = asyncio.get_running_loop()
        task = cast("asyncio.Task[Any]", asyncio.current_task(loop))
        call = _Call(task, self._seconds, loop.time() + self._seconds)
        calls = self._calls
        while calls and calls[0].over:
            calls.popleft()
        calls.append(call)
        if self._timer is None:
            self._timer = loop.call_at(call.ends, self._look)
        return call

    def _look(self) -> None:
        """Cancel what has run out; come back when the oldest of the others does."""
        self._timer = None
        loop = asyncio.get_running_loop()
        now = loop.time()
        while self._calls:
            call = self._calls[0]
            if not call.over:
                if call.ends > now:
                    self._timer = loop.call_at(call.ends, self._look)
                    return
                call.expired = True
                call.task.cancel()
            self._calls.popleft()


class _Call:
    __slots__ = ("cancelling", "ends", "expired", "over", "seconds", "task")

    def __init__(self, task: asyncio.Task[Any], seconds: float, ends: float) -> None:
        self.task = task
        self.seconds = seconds
        self.ends = ends
        self.cancelling = task.cancelling()
        self.expired = False
        self.over = False

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.over = True
        # Someone else's cancellation goes on, also where it comes at the same time as ours.
        alone = self.expired and self.task.uncancel() <= self.cancelling
        if alone and kind is asyncio.CancelledError:
            raise TimeoutError(f"no answer within {self.seconds:g} s")

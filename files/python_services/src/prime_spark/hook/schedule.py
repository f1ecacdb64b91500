"""Starts what the rules have schedules for. What was missed while the hook was down starts once."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable

import structlog

from prime_spark.hook.queue import FullError, Queue
from prime_spark.hook.rules import Rules, Schedule
from prime_spark.runtime.health import Health
from prime_spark.runtime.service import Service

_log = structlog.get_logger(__name__)

_LOOK_SECONDS = 10.0
SCHEDULES = "schedules"


class Clock:
    """Queues what is due; a schedule that is new is due after its interval."""

    def __init__(
        self, rules: Rules, queue: Queue, *, health: Health, wake: Callable[[], None]
    ) -> None:
        self._rules = rules
        self._queue = queue
        self._health = health
        self._wake = wake
        health.expect(SCHEDULES, essential=False)
        health.set(SCHEDULES, True)

    async def run(self, service: Service) -> None:
        """Look until told to stop."""
        while not await service.pause(_LOOK_SECONDS):
            service.beat(SCHEDULES)
            if await asyncio.to_thread(self.look, time.time()):
                self._wake()

    def look(self, now: float) -> int:
        """Queue what is due; return how many runs came of it."""
        try:
            last = self._queue.scheduled()
            taken = [self._see(each, last.get(each.name), now) for each in self._rules.schedules]
        except (FullError, sqlite3.Error) as error:
            # It stays due.
            if self._health.set(SCHEDULES, False, str(error)):
                _log.error("cannot start what is due", error=str(error))
            return 0
        self._health.set(SCHEDULES, True)
        return sum(taken)

    def _see(self, schedule: Schedule, last: float | None, now: float) -> bool:
        # A clock that was set back is no reason to wait until it is where it was.
        if last is not None and last <= now < schedule.next(last):
            return False
        job = None if last is None or last > now else self._rules.scheduled(schedule.name)
        taken = self._queue.put_scheduled(schedule.name, now, job)
        if taken is not None:
            _log.info("schedule", schedule=schedule.name, run=taken.run, how=taken.how)
        return taken is not None

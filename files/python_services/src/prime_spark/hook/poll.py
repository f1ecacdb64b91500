"""Asking the repository what its refs point to, at intervals: the way in that exposes nothing."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable

import structlog

from prime_spark.hook.queue import FullError, Queue
from prime_spark.hook.repository import GitError, Repository
from prime_spark.hook.rules import Rules, Source, ValueRefusedError
from prime_spark.runtime.health import Health
from prime_spark.runtime.service import Service

_log = structlog.get_logger(__name__)

# A loop that is silent for two minutes has the service restarted.
_BEAT_SECONDS = 30.0


class Poller:
    """Makes an event `{ref, before, after}` of each change of a ref.

    What is there at the first look is where it begins: it starts nothing.
    """

    def __init__(
        self,
        repository: Repository,
        rules: Rules,
        queue: Queue,
        *,
        seconds: float,
        health: Health,
        wake: Callable[[], None],
    ) -> None:
        self._repository = repository
        self._rules = rules
        self._sources = [source for source in rules.sources if source.kind == "git"]
        self._queue = queue
        self._seconds = seconds
        self._health = health
        self._wake = wake
        health.expect("git", essential=False, detail="not asked yet")

    async def run(self, service: Service) -> None:
        """Ask until told to stop."""
        while True:
            service.beat("polling")
            if await asyncio.to_thread(self.poll):
                self._wake()
            left = self._seconds
            while left > 0:
                service.beat("polling")
                if await service.pause(min(left, _BEAT_SECONDS)):
                    return
                left -= _BEAT_SECONDS

    def poll(self) -> int:
        """Ask once; return how many runs came of it."""
        try:
            heads = self._repository.heads()
            taken = [self._see(source, *head) for source in self._sources for head in heads.items()]
        except (GitError, FullError, sqlite3.Error) as error:
            # What was not stored is seen the next time.
            if self._health.set("git", False, str(error)):
                _log.error("cannot poll", error=str(error))
            return 0
        self._health.set("git", True)
        return sum(taken)

    def _see(self, source: Source, ref: str, commit: str) -> bool:
        before = self._queue.head(source.name, ref)
        if before == commit:
            return False
        job, detail = None, "first look"
        if before is not None:
            event = {"ref": ref, "before": before, "after": commit}
            try:
                job = self._rules.job(source.name, {}, event)
                detail = "" if job else "no rule matches"
            except ValueRefusedError as error:
                detail = str(error)
        taken = self._queue.accept_head(source.name, ref, commit, job)
        runs = [] if taken is None else [{"run": taken.run, "how": taken.how}]
        _log.info("delivery", audit="poll", source=source.name, ref=ref, detail=detail, runs=runs)
        return taken is not None

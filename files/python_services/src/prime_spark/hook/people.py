"""What people do, on the page or in a terminal: each act is a line in the journal."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import TypeVar

import msgspec
import structlog

from prime_spark.hook.drift import Drift
from prime_spark.hook.queue import DecisionError, FullError, Queue
from prime_spark.hook.rules import Job, Rules

R = TypeVar("R")

_log = structlog.get_logger(__name__)


class Person(msgspec.Struct, frozen=True):
    """Who acts, and from where: an address, or `terminal`."""

    name: str
    origin: str


class People:
    """Carries out what a person wants; raises DecisionError with what speaks against it.

    Whether the person may do that is for the caller to know. `wake` is called when there is
    something new in the queue.
    """

    def __init__(self, queue: Queue, rules: Rules, wake: Callable[[], None] = lambda: None) -> None:
        self.queue = queue
        self.rules = rules
        self._wake = wake
        self.drift = Drift(queue)

    def approve(self, who: Person, run: int, plan_hash: str) -> int:
        """Let a plan be applied, once; return the run that does it."""
        return self._do(
            who, "approve", lambda: self.queue.approve(run, who.name, plan_hash), run=run
        )

    def reject(self, who: Person, run: int, plan_hash: str | None = None) -> None:
        """Let a plan not be applied."""
        self._do(who, "reject", lambda: self.queue.reject(run, who.name, plan_hash), run=run)

    def cancel(self, who: Person, run: int) -> None:
        """End a run."""

        def cancel() -> None:
            if not self.queue.cancel(run, who.name):
                found = self.queue.get(run)
                state = "is not known" if found is None else f"has ended: {found.state}"
                raise DecisionError(f"run {run} {state}")

        self._do(who, "cancel", cancel, run=run)

    def again(self, who: Person, run: int, *, failed_only: bool = False) -> int:
        """Run again what has ended, as far as the rules still have it; return the run."""

        def again() -> int:
            found = self.queue.get(run)
            if found is not None and found.job is not None:
                self._check(found.job)
            return self.queue.again(run, failed_only, who.name).run

        return self._do(who, "again", again, run=run, failed_only=failed_only)

    def start(self, who: Person, schedule: str) -> int:
        """Start now what a schedule starts; return the run."""

        def start() -> int:
            job = self.rules.scheduled(schedule)
            if job is None:
                raise DecisionError(f"there is no schedule {schedule!r}")
            return self.queue.put(job, f"user:{who.name}").run

        return self._do(who, "start", start, schedule=schedule)

    def mend(self, who: Person, host: str, role: str) -> int:
        """Plan to bring a role of a host back to what it should be; return the run."""

        def mend() -> int:
            known = {each.host: each.roles for each in self.drift.latest()}
            if role not in known.get(host, {}):
                raise DecisionError(f"no report of drift has role {role!r} of host {host!r}")
            try:
                job = self.rules.mending(host, role)
            except ValueError as error:
                raise DecisionError(str(error)) from None
            if job is None:
                raise DecisionError("the rules have no mend")
            return self.queue.put(job, f"user:{who.name}").run

        return self._do(who, "mend", mend, host=host, role=role)

    def reset(self, who: Person, rule: str, host: str) -> None:
        """Let a rule start on a host again after its breaker has opened."""

        def reset() -> None:
            if not self.queue.reset(rule, host):
                raise DecisionError(f"rule {rule!r} has no failures on {host!r}")

        self._do(who, "reset", reset, rule=rule, host=host)

    def _check(self, job: Job) -> None:
        action = self.rules.action(job.rule)
        if action is None or action.playbook != job.playbook:
            raise DecisionError(f"the rules no longer have {job.rule!r} with {job.playbook!r}")
        # As it was before the rule became stricter, it is for nobody any more.
        if (action.approval and job.approval_seconds is None) or (action.check and not job.check):
            raise DecisionError(f"the rules have {job.rule!r} with approval or check mode by now")

    def _do(self, who: Person, act: str, work: Callable[[], R], **what: object) -> R:
        outcome: dict[str, object] = {"refused": ""}
        try:
            result = work()
            if isinstance(result, int):
                outcome["started"] = result
            self._wake()
        except (DecisionError, FullError) as error:
            outcome["refused"] = str(error)
            raise DecisionError(str(error)) from None
        except sqlite3.Error as error:
            outcome["refused"] = f"not stored: {error}"
            raise
        finally:
            _log.info(act, audit="act", user=who.name, client=who.origin, **what, **outcome)
        return result

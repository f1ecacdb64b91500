"""Plans that wait for a person, and what becomes of them."""

from __future__ import annotations

import sqlite3
import time

import msgspec

from prime_spark.hook.rules import Applied, Job
from prime_spark.hook.store import (
    ACTIVE,
    WHO_CHARS,
    DecisionError,
    Ended,
    Run,
    Store,
)


class Approvals(Store):
    """Decisions about plans: each is of one person, about one plan, once, in time."""

    def waiting(self) -> list[Run]:
        """Return the runs that wait for approval, the oldest first."""
        return self._select("state = 'waiting_approval' ORDER BY id")

    def wait_approval(self, run: int, plan_hash: str, changes: int) -> bool:
        """Let a run whose plan is there wait for approval, which unlocks its hosts.

        False when it is to be cancelled, or has ended.
        An older plan that is the same but for the commit needs no decision any more. No more plans
        wait than runs.
        """
        with self.transaction() as db:
            job = self._one(db, run).job
            if job is None or job.approval_seconds is None:
                return False
            moved = self._move(
                db,
                "state = 'waiting_approval', plan_hash = ?, changes = ?, expires = ? "
                f"WHERE id = ? AND state IN {ACTIVE} AND cancel = 0",
                plan_hash,
                changes,
                time.time() + job.approval_seconds,
                run,
            )
            older = self._rows(db, "state = 'waiting_approval' AND id < ? ORDER BY id DESC", run)
            for number, other in enumerate(older if moved else [], start=1):
                if other.job is not None and _alike(other.job, job):
                    self._leave(db, other.id, "expired", f"run {run} has a newer plan")
                elif number >= self._max_queued:
                    self._leave(db, other.id, "expired", "too many plans wait")
            return moved

    def approve(self, run: int, user: str, plan_hash: str) -> int:
        """Queue the run that applies a plan; return it. Raises DecisionError.

        One approval is for one plan: the one with this hash, once, before it expires.
        """
        with self.transaction() as db:
            job = self._decide(db, run, "approved", user, plan_hash)
            applies = msgspec.structs.replace(job, applies=Applied(run=run, plan_hash=plan_hash))
            # However full the queue is.
            return self._insert(db, applies, f"user:{user}")

    def reject(self, run: int, user: str, plan_hash: str | None = None) -> None:
        """End a run whose plan is not to be applied. Raises DecisionError."""
        with self.transaction() as db:
            self._decide(db, run, "rejected", user, plan_hash)

    def expire(self) -> list[Run]:
        """End the runs that have waited too long for approval; return which."""
        if all(run.expires is not None and run.expires > time.time() for run in self.waiting()):
            return []
        with self.transaction() as db:
            late = self._rows(db, "state = 'waiting_approval' AND expires <= ?", time.time())
            for run in late:
                self._leave(db, run.id, "expired", "nobody approved it in time")
            return late

    def _decide(
        self, db: sqlite3.Connection, run: int, state: Ended, user: str, plan_hash: str | None
    ) -> Job:
        found = next(iter(self._rows(db, "id = ?", run)), None)
        if found is None:
            raise DecisionError(f"run {run} is not known")
        if found.state != "waiting_approval":
            by = f" by {found.decided_by}" if found.decided_by else ""
            raise DecisionError(f"run {run} does not wait for approval: {found.state}{by}")
        if found.expires is None or found.expires <= time.time():
            raise DecisionError(f"run {run} does not wait for approval: expired")
        if plan_hash is not None and plan_hash != found.plan_hash:
            raise DecisionError(f"run {run} has another plan than the one that was looked at")
        if found.job is None:
            raise DecisionError(f"run {run} cannot be read")
        self._leave(db, run, state, f"by {user}"[:WHO_CHARS], user)
        return found.job

    def _leave(
        self, db: sqlite3.Connection, run: int, state: Ended, reason: str, user: str | None = None
    ) -> None:
        self._move(
            db,
            "state = ?, reason = ?, ended = ?, decided_by = ? "
            "WHERE id = ? AND state = 'waiting_approval'",
            state,
            reason,
            time.time(),
            user and user[:WHO_CHARS],
            run,
        )


def _alike(one: Job, other: Job) -> bool:
    """Whether two jobs are the same but for the commit."""
    return msgspec.structs.replace(one, commit=other.commit) == other

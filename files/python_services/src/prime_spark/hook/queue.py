"""The durable queue: runs and deliveries in one SQLite file.

A run that was accepted is on the disk. Locks of hosts are no data of their own: a host is locked
while a run that touches it is starting or running, so none can be left behind.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable, Mapping

import msgspec

from prime_spark.hook.approval import Approvals
from prime_spark.hook.rules import Job, limit_of
from prime_spark.hook.store import (
    ACTIVE,
    FAILURES,
    Breaker,
    DecisionError,
    Ended,
    FullError,
    HostResult,
    Run,
    State,
    Taken,
    fingerprint,
)

__all__ = [
    "Breaker",
    "DecisionError",
    "Ended",
    "FullError",
    "HostResult",
    "Queue",
    "Run",
    "State",
    "Taken",
]
# So many failures in a row of a rule on a host open its breaker.
_BREAKER_FAILURES = 2


class Queue(Approvals):
    """Runs, in the order in which they are to start; the calls block and come from any thread.

    At most `max_queued` runs wait. The newest `max_deliveries` are known again.
    """

    # -- what comes in ------------------------------------------------------------------------

    def accept(self, source: str, wanted: Iterable[tuple[tuple[str, ...], Job]]) -> list[Taken]:
        """Take jobs, each with the keys of its event: all of them or, with FullError, none.

        What is returned survives a power cut.
        """
        with self.transaction() as db:
            return [
                self._take(db, [f"{source}/{key}" for key in keys], job, f"source:{source}")
                for keys, job in wanted
            ]

    def put(self, job: Job, triggered_by: str, again_of: int | None = None) -> Taken:
        """Take a job that is of no delivery."""
        with self.transaction() as db:
            return self._take(db, [], job, triggered_by, again_of)

    def remember(self, source: str, keys: Iterable[str]) -> int | None:
        """Remember a delivery that starts nothing; None when it is new.

        Otherwise return the run that it was for, 0 when it was for none.
        """
        with self.transaction() as db:
            named = [f"{source}/{key}" for key in keys]
            run = self._known(db, named)
            if run is None:
                self._note(db, named, 0)
            return run

    def again(self, run: int, failed_only: bool, user: str) -> Taken:
        """Queue a run that has ended once more, or for the hosts alone on which it failed.

        At its commit, where it had one; a run that needs approval begins with a plan. No brake of
        a remediation holds for a person. Raises DecisionError, FullError.
        """
        with self.transaction() as db:
            found = next(iter(self._rows(db, "id = ?", run)), None)
            if found is None:
                raise DecisionError(f"run {run} is not known")
            if found.job is None:
                raise DecisionError(f"run {run} cannot be read")
            if found.ended is None:
                raise DecisionError(f"run {run} has not ended: {found.state}")
            job = msgspec.structs.replace(found.job, applies=None, remediation=None)
            if failed_only:
                job = msgspec.structs.replace(job, limit=_failed(found))
            return self._take(db, [], job, f"user:{user}", run)

    def accept_head(self, source: str, ref: str, commit: str, job: Job | None) -> Taken | None:
        """Note what a ref points to now and take the job that comes of it, or neither."""
        with self.transaction() as db:
            db.execute("INSERT OR REPLACE INTO heads VALUES (?, ?, ?)", (source, ref, commit))
            if job is None:
                return None
            # A ref may come back to where it was.
            key = f"{source}/{ref}:{commit}:{time.time_ns()}"
            return self._take(db, [key], job, f"source:{source}")

    def put_scheduled(self, name: str, at: float, job: Job | None) -> Taken | None:
        """Note when a schedule was due and take the job that comes of it, or neither."""
        with self.transaction() as db:
            db.execute("INSERT OR REPLACE INTO schedules VALUES (?, ?)", (name, at))
            return None if job is None else self._take(db, [], job, f"schedule:{name}")

    def scheduled(self) -> dict[str, float]:
        """Return when each schedule was due last."""
        with self.reading() as db:
            return dict(db.execute("SELECT name, at FROM schedules"))

    def head(self, source: str, ref: str) -> str | None:
        """Return what was noted of a ref."""
        with self.reading() as db:
            row = db.execute(
                "SELECT commit_id FROM heads WHERE source = ? AND ref = ?", (source, ref)
            ).fetchone()
        return None if row is None else str(row[0])

    def _take(
        self,
        db: sqlite3.Connection,
        keys: list[str],
        job: Job,
        triggered_by: str,
        again_of: int | None = None,
    ) -> Taken:
        known = self._known(db, keys)
        if known is not None:
            return Taken(known, "repeated")
        row = db.execute(
            "SELECT id FROM runs WHERE fingerprint = ? AND state = 'queued'", (fingerprint(job),)
        ).fetchone()
        if row is not None:
            taken = Taken(row[0], "coalesced")
        elif self._count(db, "state = 'queued'") >= self._max_queued:
            raise FullError(f"{self._max_queued} runs wait")
        else:
            taken = Taken(self._insert(db, job, triggered_by, again_of), "new")
        self._note(db, keys, taken.run)
        return taken

    @staticmethod
    def _known(db: sqlite3.Connection, keys: list[str]) -> int | None:
        marks = ", ".join("?" * len(keys))
        row = db.execute(f"SELECT run FROM deliveries WHERE key IN ({marks})", keys).fetchone()  # noqa: S608
        return None if row is None else int(row[0])

    def _note(self, db: sqlite3.Connection, keys: list[str], run: int) -> None:
        now = time.time()
        db.executemany("INSERT INTO deliveries VALUES (?, ?, ?)", [(key, run, now) for key in keys])
        self._prune_deliveries(db)

    def _prune_deliveries(self, db: sqlite3.Connection) -> None:
        """Forget the oldest deliveries, now and then: that reads all that are kept."""
        self._until_pruned -= 1
        if self._until_pruned > 0:
            return
        self._until_pruned = self._max_deliveries // 100
        db.execute(
            "DELETE FROM deliveries WHERE key IN "
            "(SELECT key FROM deliveries ORDER BY at DESC LIMIT -1 OFFSET ?)",
            (self._max_deliveries,),
        )

    # -- what is there ------------------------------------------------------------------------

    def get(self, run: int) -> Run | None:
        """Return one run."""
        return next(iter(self._select("id = ?", run)), None)

    def pending(self) -> list[Run]:
        """Return the runs that wait, in the order in which they are to start."""
        return self._select("state = 'queued' ORDER BY priority, id")

    def active(self) -> list[Run]:
        """Return the runs that may have a process."""
        return self._select(f"state IN {ACTIVE} ORDER BY id")

    def newest(self, number: int, before: int | None = None) -> list[Run]:
        """Return the newest runs, or those before one of them; the newest first."""
        if before is None:
            return self._select("TRUE ORDER BY id DESC LIMIT ?", number)
        return self._select("id < ? ORDER BY id DESC LIMIT ?", before, number)

    def ended(self) -> list[int]:
        """Return the runs that have ended, the newest first."""
        with self.reading() as db:
            rows = db.execute(
                "SELECT id FROM runs WHERE ended IS NOT NULL ORDER BY ended DESC, id DESC"
            )
            return [row[0] for row in rows]

    def started_within(self, rule: str, seconds: float) -> list[Run]:
        """Return the runs of a rule that were started in the last seconds.

        A run from long after now was started while the clock was wrong, and counts no more.
        """
        now = time.time()
        return self._select(
            "rule = ? AND started BETWEEN ? AND ?", rule, now - seconds, now + seconds
        )

    def newest_failures(self, rules: Iterable[str]) -> list[Run]:
        """Return the newest run of each of these rules that has worked, where that failed."""
        worked = ("succeeded", "plan_changed", *FAILURES)
        marks = ", ".join("?" * len(worked))
        runs = self._select(
            f"id IN (SELECT max(id) FROM runs WHERE state IN ({marks}) GROUP BY rule)",  # noqa: S608
            *worked,
        )
        known = set(rules)
        return [run for run in runs if run.state != "succeeded" and run.rule in known]

    def deliveries(self, run: int) -> list[str]:
        """Return the keys of the deliveries that one run is for, as far as they are kept."""
        with self.reading() as db:
            rows = db.execute("SELECT key FROM deliveries WHERE run = ? ORDER BY at, key", (run,))
            return [row[0] for row in rows]

    def counts(self) -> dict[str, int]:
        """Return how many runs are in which state."""
        with self.reading() as db:
            return dict(db.execute("SELECT state, count(*) FROM runs GROUP BY state"))

    # -- what becomes of it -------------------------------------------------------------------

    def start(self, run: int, hosts: Iterable[str], job: Job | None = None) -> bool:
        """Lock the hosts and note that a process may come up; False when the run waits no more.

        False as well when a host is locked: no host is ever in two runs. `job` is the run's with
        the commit that its ref has now.
        """
        wanted = sorted(set(hosts))
        with self.transaction() as db:
            rows = db.execute(f"SELECT hosts FROM runs WHERE state IN {ACTIVE}")  # noqa: S608
            locked = {host for row in rows for host in msgspec.json.decode(row[0])}
            if locked & set(wanted):
                return False
            return self._move(
                db,
                "state = 'starting', started = ?, hosts = ?, job = coalesce(?, job) "
                "WHERE id = ? AND state = 'queued'",
                time.time(),
                msgspec.json.encode(wanted).decode(),
                None if job is None else msgspec.json.encode(job),
                run,
            )

    def running(self, run: int) -> bool:
        """Note that the run's process is there."""
        with self.transaction() as db:
            return self._move(db, "state = 'running' WHERE id = ? AND state = 'starting'", run)

    def end(
        self,
        run: int,
        state: Ended,
        reason: str = "",
        ended: float | None = None,
        results: Mapping[str, HostResult] | None = None,
    ) -> bool:
        """Note how a run ended, which unlocks its hosts; False when it had ended."""
        with self.transaction() as db:
            if not self._move(
                db,
                "state = ?, reason = ?, ended = ?, results = ? WHERE id = ? AND ended IS NULL",
                state,
                reason,
                time.time() if ended is None else ended,
                msgspec.json.encode(results or {}).decode(),
                run,
            ):
                return False
            self._count_failures(db, self._one(db, run))
            return True

    @staticmethod
    def _count_failures(db: sqlite3.Connection, run: Run) -> None:
        """Count the failures in a row of a remediation on each of its hosts."""
        if run.job is None or run.job.remediation is None:
            return
        if run.state not in {"succeeded", *FAILURES}:
            return
        for host in run.hosts:
            # Without a word about any host, the run as a whole counts for all of them.
            result = run.results.get(host, "ok") if run.results else run.state
            if result in FAILURES:
                db.execute(
                    "INSERT INTO breakers VALUES (?, ?, 1, ?) ON CONFLICT DO UPDATE SET "
                    "failures = failures + 1, at = excluded.at",
                    (run.rule, host, time.time()),
                )
            elif not run.job.plans:
                db.execute(
                    "DELETE FROM breakers WHERE rule = ? AND host = ? AND failures < ?",
                    (run.rule, host, _BREAKER_FAILURES),
                )

    def breakers(self) -> list[Breaker]:
        """Return the rules that do not start on a host any more."""
        with self.reading() as db:
            rows = db.execute(
                "SELECT rule, host, failures, at FROM breakers WHERE failures >= ? "
                "ORDER BY rule, host",
                (_BREAKER_FAILURES,),
            ).fetchall()
        return [Breaker(*row) for row in rows]

    def reset(self, rule: str, host: str) -> bool:
        """Let a rule start on a host again; False when it does."""
        with self.transaction() as db:
            done = db.execute("DELETE FROM breakers WHERE rule = ? AND host = ?", (rule, host))
            return done.rowcount == 1

    # -- what has been told -------------------------------------------------------------------

    def untold(self, number: int = 50) -> list[Run]:
        """Return the oldest runs of which a state has not been told."""
        return self._select("told != state ORDER BY id LIMIT ?", number)

    def told(self, run: int, state: State) -> None:
        """Note the state of a run that has been told."""
        with self.transaction() as db:
            self._move(db, "told = ? WHERE id = ?", state, run)

    # -----------------------------------------------------------------------------------------

    def cancel(self, run: int, user: str | None = None) -> bool:
        """End a run that waits; ask for the end of one that has begun. False when it had ended."""
        with self.transaction() as db:
            return self._move(
                db,
                "state = 'cancelled', reason = CASE state WHEN 'queued' THEN 'before it started' "
                "ELSE 'before it was applied' END, ended = ?, cancel = 1, "
                "decided_by = ? WHERE id = ? AND state IN ('queued', 'waiting_approval')",
                time.time(),
                user,
                run,
            ) or self._move(
                db, f"cancel = 1, decided_by = ? WHERE id = ? AND state IN {ACTIVE}", user, run
            )

    def prune(self, keep: int) -> list[int]:
        """Forget all but the newest `keep` of the runs that have ended; return which.

        Runs that never started count for themselves: many of them leave the brakes what they need.
        """
        with self.transaction() as db:
            rows = db.execute(
                "DELETE FROM runs WHERE id IN (SELECT id FROM (SELECT id, row_number() OVER "
                "(PARTITION BY started IS NULL ORDER BY ended DESC, id DESC) AS place "
                "FROM runs WHERE ended IS NOT NULL) WHERE place > ?) RETURNING id",
                (keep,),
            )
            return [row[0] for row in rows.fetchall()]


def _failed(run: Run) -> str:
    """Return the hosts on which a run failed, as a limit."""
    hosts = sorted(host for host, result in run.results.items() if result in FAILURES)
    if not hosts:
        raise DecisionError(f"run {run.id}: no host is known to have failed")
    try:
        return limit_of(hosts)
    except ValueError:
        raise DecisionError(f"run {run.id}: the hosts' names make no limit") from None

"""The durable queue: runs and deliveries in one SQLite file.

A run that was accepted is on the disk. Locks of hosts are no data of their own: a host is locked
while a run that touches it is starting or running, so none can be left behind.
"""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import msgspec

from prime_spark.hook.rules import Applied, HostPattern, Job, Priority

Ended = Literal[
    "succeeded",
    "failed",
    "unreachable",
    "cancelled",
    "timed_out",
    "lost",
    "skipped",
    "approved",
    "rejected",
    "expired",
    "plan_changed",
]
State = Literal["queued", "starting", "running", "waiting_approval"] | Ended
# How a run was for one host.
HostResult = Literal["ok", "changed", "failed", "unreachable"]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS runs (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    rule TEXT NOT NULL,
    job BLOB NOT NULL,
    fingerprint TEXT NOT NULL,
    priority INTEGER NOT NULL,
    state TEXT NOT NULL,
    accepted REAL NOT NULL,
    started REAL,
    ended REAL,
    hosts TEXT NOT NULL DEFAULT '[]',
    reason TEXT NOT NULL DEFAULT '',
    cancel INTEGER NOT NULL DEFAULT 0,
    triggered_by TEXT NOT NULL,
    results TEXT NOT NULL DEFAULT '{}',
    applies INTEGER,
    again_of INTEGER,
    plan_hash TEXT,
    changes INTEGER,
    expires REAL,
    decided_by TEXT,
    told TEXT NOT NULL DEFAULT ''
) STRICT;
CREATE UNIQUE INDEX IF NOT EXISTS runs_applies ON runs (applies) WHERE applies IS NOT NULL;
CREATE UNIQUE INDEX IF NOT EXISTS runs_pending ON runs (fingerprint) WHERE state = 'queued';
CREATE INDEX IF NOT EXISTS runs_state ON runs (state);
CREATE TABLE IF NOT EXISTS deliveries (
    key TEXT PRIMARY KEY,
    run INTEGER NOT NULL,
    at REAL NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS deliveries_at ON deliveries (at);
CREATE INDEX IF NOT EXISTS deliveries_run ON deliveries (run);
CREATE TABLE IF NOT EXISTS heads (
    source TEXT NOT NULL,
    ref TEXT NOT NULL,
    commit_id TEXT NOT NULL,
    PRIMARY KEY (source, ref)
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS breakers (
    rule TEXT NOT NULL,
    host TEXT NOT NULL,
    failures INTEGER NOT NULL,
    at REAL NOT NULL,
    PRIMARY KEY (rule, host)
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS schedules (
    name TEXT PRIMARY KEY,
    at REAL NOT NULL
) STRICT, WITHOUT ROWID;
"""
_COLUMNS = (
    "id, rule, state, job, accepted, started, ended, hosts, reason, cancel, triggered_by, results, "
    "applies, again_of, plan_hash, changes, expires, decided_by, "
    "(SELECT other.id FROM runs AS other WHERE other.applies = runs.id)"
)
_ACTIVE = "('starting', 'running')"
_FAILURES = ("failed", "unreachable", "timed_out", "lost")
# So many failures in a row of a rule on a host open its breaker.
_BREAKER_FAILURES = 2
_WHO_CHARS = 200
# Another process, a command of an operator, writes for milliseconds.
_BUSY_SECONDS = 10.0


class FullError(Exception):
    """The queue has no room for another run."""


class DecisionError(Exception):
    """A person's decision cannot be carried out; the message says why."""


class Run(msgspec.Struct, frozen=True):
    """A run as the queue knows it. Times are Unix seconds, None for not yet.

    `job` is None where what is stored cannot be read, as after a release with other fields.
    `triggered_by` is `source:NAME`, `schedule:NAME` or `user:NAME`; `results` are by host. A run
    that is a plan has `plan_hash`, the number of its `changes`, when it `expires`, who decided, and
    the run in which it is `applied`; that one `applies` it.
    """

    id: int
    rule: str
    state: State
    job: Job | None
    accepted: float
    started: float | None
    ended: float | None
    hosts: list[str]
    reason: str
    cancel: bool
    triggered_by: str
    results: dict[str, HostResult]
    applies: int | None
    again_of: int | None
    plan_hash: str | None
    changes: int | None
    expires: float | None
    decided_by: str | None
    applied: int | None

    @property
    def active(self) -> bool:
        """Whether the run may have a process."""
        return self.state in {"starting", "running"}


class Breaker(msgspec.Struct, frozen=True):
    """A rule that starts no more on a host, since a Unix time, until somebody resets it."""

    rule: str
    host: str
    failures: int
    at: float


class Taken(msgspec.Struct, frozen=True):
    """What became of an event: a run of its own, one that waits already, or it was there before."""

    run: int
    how: Literal["new", "coalesced", "repeated"]


class Queue:
    """Runs, in the order in which they are to start; the calls block and come from any thread.

    At most `max_queued` runs wait. The newest `max_deliveries` are known again.
    """

    def __init__(self, path: Path, max_queued: int = 1000, max_deliveries: int = 20_000) -> None:
        self._max_queued = max_queued
        self._max_deliveries = max_deliveries
        self._until_pruned = 0
        self._lock = threading.Lock()
        self._db = sqlite3.connect(
            path, timeout=_BUSY_SECONDS, check_same_thread=False, isolation_level=None
        )
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.executescript(_SCHEMA)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

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
        with self._lock:
            return dict(self._db.execute("SELECT name, at FROM schedules"))

    def head(self, source: str, ref: str) -> str | None:
        """Return what was noted of a ref."""
        with self._lock:
            row = self._db.execute(
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
            "SELECT id FROM runs WHERE fingerprint = ? AND state = 'queued'", (_fingerprint(job),)
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
    def _insert(
        db: sqlite3.Connection, job: Job, triggered_by: str, again_of: int | None = None
    ) -> int:
        cursor = db.execute(
            "INSERT INTO runs (rule, job, fingerprint, priority, state, accepted, triggered_by, "
            "applies, again_of) VALUES (?, ?, ?, ?, 'queued', ?, ?, ?, ?)",
            (
                job.rule,
                msgspec.json.encode(job),
                _fingerprint(job),
                get_args(Priority).index(job.priority),
                time.time(),
                triggered_by[:_WHO_CHARS],
                job.applies.run if job.applies else None,
                again_of,
            ),
        )
        assert cursor.lastrowid is not None  # noqa: S101 (there is one after an insert)
        return cursor.lastrowid

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
        return self._select(f"state IN {_ACTIVE} ORDER BY id")

    def waiting(self) -> list[Run]:
        """Return the runs that wait for approval, the oldest first."""
        return self._select("state = 'waiting_approval' ORDER BY id")

    def newest(self, number: int, before: int | None = None) -> list[Run]:
        """Return the newest runs, or those before one of them; the newest first."""
        if before is None:
            return self._select("TRUE ORDER BY id DESC LIMIT ?", number)
        return self._select("id < ? ORDER BY id DESC LIMIT ?", before, number)

    def ended(self) -> list[int]:
        """Return the runs that have ended, the newest first."""
        with self._lock:
            rows = self._db.execute(
                "SELECT id FROM runs WHERE ended IS NOT NULL ORDER BY ended DESC, id DESC"
            )
            return [row[0] for row in rows]

    def started_since(self, rule: str, moment: float) -> list[Run]:
        """Return the runs of a rule that were started since then."""
        return self._select("rule = ? AND started >= ?", rule, moment)

    def newest_failures(self, rules: Iterable[str]) -> list[Run]:
        """Return the newest run of each of these rules that has worked, where that failed."""
        worked = ("succeeded", "plan_changed", *_FAILURES)
        marks = ", ".join("?" * len(worked))
        runs = self._select(
            f"id IN (SELECT max(id) FROM runs WHERE state IN ({marks}) GROUP BY rule)",  # noqa: S608
            *worked,
        )
        known = set(rules)
        return [run for run in runs if run.state != "succeeded" and run.rule in known]

    def deliveries(self, run: int) -> list[str]:
        """Return the keys of the deliveries that one run is for, as far as they are kept."""
        with self._lock:
            rows = self._db.execute(
                "SELECT key FROM deliveries WHERE run = ? ORDER BY at, key", (run,)
            )
            return [row[0] for row in rows]

    def counts(self) -> dict[str, int]:
        """Return how many runs are in which state."""
        with self._lock:
            return dict(self._db.execute("SELECT state, count(*) FROM runs GROUP BY state"))

    # -- what becomes of it -------------------------------------------------------------------

    def start(self, run: int, hosts: Iterable[str], job: Job | None = None) -> bool:
        """Lock the hosts and note that a process may come up; False when the run waits no more.

        False as well when a host is locked: no host is ever in two runs. `job` is the run's with
        the commit that its ref has now.
        """
        wanted = sorted(set(hosts))
        with self.transaction() as db:
            rows = db.execute(f"SELECT hosts FROM runs WHERE state IN {_ACTIVE}")  # noqa: S608
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
        if run.state not in {"succeeded", *_FAILURES}:
            return
        for host in run.hosts:
            # Without a word about any host, the run as a whole counts for all of them.
            result = run.results.get(host, "ok") if run.results else run.state
            if result in _FAILURES:
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
        with self._lock:
            rows = self._db.execute(
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

    # -- approval -----------------------------------------------------------------------------

    def wait_approval(self, run: int, plan_hash: str, changes: int) -> bool:
        """Let a run whose plan is there wait for approval, which unlocks its hosts.

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
                f"WHERE id = ? AND state IN {_ACTIVE}",
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
        self._leave(db, run, state, f"by {user}"[:_WHO_CHARS], user)
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
            user and user[:_WHO_CHARS],
            run,
        )

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
                db, f"cancel = 1, decided_by = ? WHERE id = ? AND state IN {_ACTIVE}", user, run
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

    # -----------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Write; what was done within is on the disk afterwards, or nothing of it."""
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Read, while nobody else uses the connection."""
        with self._lock:
            yield self._db

    @staticmethod
    def _move(db: sqlite3.Connection, change: str, *values: object) -> bool:
        return db.execute(f"UPDATE runs SET {change}", values).rowcount == 1  # noqa: S608

    @staticmethod
    def _count(db: sqlite3.Connection, where: str) -> int:
        row: tuple[int] = db.execute(f"SELECT count(*) FROM runs WHERE {where}").fetchone()  # noqa: S608
        return row[0]

    def _select(self, where: str, *values: object) -> list[Run]:
        with self._lock:
            return self._rows(self._db, where, *values)

    @staticmethod
    def _rows(db: sqlite3.Connection, where: str, *values: object) -> list[Run]:
        rows = db.execute(f"SELECT {_COLUMNS} FROM runs WHERE {where}", values).fetchall()  # noqa: S608
        return [_run(row) for row in rows]

    def _one(self, db: sqlite3.Connection, run: int) -> Run:
        return self._rows(db, "id = ?", run)[0]


def _run(row: tuple[Any, ...]) -> Run:
    values = dict(zip(Run.__struct_fields__, row, strict=True))
    return Run(
        **values
        | {
            "job": _job(values["job"]),
            "hosts": msgspec.json.decode(values["hosts"]),
            "results": msgspec.json.decode(values["results"]),
            "cancel": bool(values["cancel"]),
        }
    )


def _fingerprint(job: Job) -> str:
    return hashlib.sha256(msgspec.json.encode(job, order="deterministic")).hexdigest()


def _alike(one: Job, other: Job) -> bool:
    """Whether two jobs are the same but for the commit."""
    return msgspec.structs.replace(one, commit=other.commit) == other


def _failed(run: Run) -> str:
    """Return the hosts on which a run failed, as a limit."""
    hosts = [host for host, result in run.results.items() if result in _FAILURES]
    if not hosts:
        raise DecisionError(f"run {run.id}: no host is known to have failed")
    try:
        return msgspec.convert(",".join(sorted(hosts)), HostPattern)
    except msgspec.ValidationError:
        raise DecisionError(f"run {run.id}: the hosts' names make no limit") from None


def _job(data: bytes) -> Job | None:
    try:
        return msgspec.json.decode(data, type=Job)
    except (msgspec.MsgspecError, ValueError):
        return None

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
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args

import msgspec

from prime_spark.hook.rules import Job, Priority

Ended = Literal[
    "succeeded",
    "failed",
    "unreachable",
    "cancelled",
    "timed_out",
    "lost",
    "skipped",
]
State = Literal["queued", "starting", "running"] | Ended

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
    cancel INTEGER NOT NULL DEFAULT 0
) STRICT;
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
"""
_COLUMNS = "id, rule, state, job, accepted, started, ended, hosts, reason, cancel"
_ACTIVE = "('starting', 'running')"
# Another process, a command of an operator, writes for milliseconds.
_BUSY_SECONDS = 10.0


class FullError(Exception):
    """The queue has no room for another run."""


class Run(msgspec.Struct, frozen=True):
    """A run as the queue knows it. Times are Unix seconds, None for not yet.

    `job` is None where what is stored cannot be read, as after a release with other fields.
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

    @property
    def active(self) -> bool:
        """Whether the run may have a process."""
        return self.state in {"starting", "running"}


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
        with self._transaction() as db:
            return [
                self._take(db, [f"{source}/{key}" for key in keys], job) for keys, job in wanted
            ]

    def remember(self, source: str, keys: Iterable[str]) -> int | None:
        """Remember a delivery that starts nothing; None when it is new.

        Otherwise return the run that it was for, 0 when it was for none.
        """
        with self._transaction() as db:
            named = [f"{source}/{key}" for key in keys]
            run = self._known(db, named)
            if run is None:
                self._note(db, named, 0)
            return run

    def accept_head(self, source: str, ref: str, commit: str, job: Job | None) -> Taken | None:
        """Note what a ref points to now and take the job that comes of it, or neither."""
        with self._transaction() as db:
            db.execute("INSERT OR REPLACE INTO heads VALUES (?, ?, ?)", (source, ref, commit))
            if job is None:
                return None
            # A ref may come back to where it was.
            return self._take(db, [f"{source}/{ref}:{commit}:{time.time_ns()}"], job)

    def head(self, source: str, ref: str) -> str | None:
        """Return what was noted of a ref."""
        with self._lock:
            row = self._db.execute(
                "SELECT commit_id FROM heads WHERE source = ? AND ref = ?", (source, ref)
            ).fetchone()
        return None if row is None else str(row[0])

    def _take(self, db: sqlite3.Connection, keys: list[str], job: Job) -> Taken:
        known = self._known(db, keys)
        if known is not None:
            return Taken(known, "repeated")
        data = msgspec.json.encode(job, order="deterministic")
        fingerprint = hashlib.sha256(data).hexdigest()
        now = time.time()
        row = db.execute(
            "SELECT id FROM runs WHERE fingerprint = ? AND state = 'queued'", (fingerprint,)
        ).fetchone()
        if row is not None:
            taken = Taken(row[0], "coalesced")
        elif self._count(db, "state = 'queued'") >= self._max_queued:
            raise FullError(f"{self._max_queued} runs wait")
        else:
            cursor = db.execute(
                "INSERT INTO runs (rule, job, fingerprint, priority, state, accepted) "
                "VALUES (?, ?, ?, ?, 'queued', ?)",
                (job.rule, data, fingerprint, get_args(Priority).index(job.priority), now),
            )
            assert cursor.lastrowid is not None  # noqa: S101 (there is one after an insert)
            taken = Taken(cursor.lastrowid, "new")
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
        return self._select(f"state IN {_ACTIVE} ORDER BY id")

    def newest(self, number: int) -> list[Run]:
        """Return the newest runs, the newest first."""
        return self._select("TRUE ORDER BY id DESC LIMIT ?", number)

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

    def start(self, run: int, hosts: Iterable[str]) -> bool:
        """Lock the hosts and note that a process may come up; False when the run waits no more.

        False as well when a host is locked: no host is ever in two runs.
        """
        wanted = sorted(set(hosts))
        with self._transaction() as db:
            rows = db.execute(f"SELECT hosts FROM runs WHERE state IN {_ACTIVE}")  # noqa: S608
            locked = {host for row in rows for host in msgspec.json.decode(row[0])}
            if locked & set(wanted):
                return False
            return self._move(
                db,
                "state = 'starting', started = ?, hosts = ? WHERE id = ? AND state = 'queued'",
                time.time(),
                msgspec.json.encode(wanted).decode(),
                run,
            )

    def running(self, run: int) -> bool:
        """Note that the run's process is there."""
        with self._transaction() as db:
            return self._move(db, "state = 'running' WHERE id = ? AND state = 'starting'", run)

    def end(self, run: int, state: Ended, reason: str = "", ended: float | None = None) -> bool:
        """Note how a run ended, which unlocks its hosts; False when it had ended."""
        with self._transaction() as db:
            return self._move(
                db,
                "state = ?, reason = ?, ended = ? WHERE id = ? AND ended IS NULL",
                state,
                reason,
                time.time() if ended is None else ended,
                run,
            )

    def cancel(self, run: int) -> bool:
        """End a run that waits; ask for the end of one that has begun. False when it had ended."""
        with self._transaction() as db:
            return self._move(
                db,
                "state = 'cancelled', reason = 'before it started', ended = ?, cancel = 1 "
                "WHERE id = ? AND state = 'queued'",
                time.time(),
                run,
            ) or self._move(db, f"cancel = 1 WHERE id = ? AND state IN {_ACTIVE}", run)

    def prune(self, keep: int) -> list[int]:
        """Forget all but the newest `keep` of the runs that have ended; return which.

        Runs that never started count for themselves: many of them leave the brakes what they need.
        """
        with self._transaction() as db:
            rows = db.execute(
                "DELETE FROM runs WHERE id IN (SELECT id FROM (SELECT id, row_number() OVER "
                "(PARTITION BY started IS NULL ORDER BY ended DESC, id DESC) AS place "
                "FROM runs WHERE ended IS NOT NULL) WHERE place > ?) RETURNING id",
                (keep,),
            )
            return [row[0] for row in rows.fetchall()]

    # -----------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    @staticmethod
    def _move(db: sqlite3.Connection, change: str, *values: object) -> bool:
        return db.execute(f"UPDATE runs SET {change}", values).rowcount == 1  # noqa: S608

    @staticmethod
    def _count(db: sqlite3.Connection, where: str) -> int:
        row: tuple[int] = db.execute(f"SELECT count(*) FROM runs WHERE {where}").fetchone()  # noqa: S608
        return row[0]

    def _select(self, where: str, *values: object) -> list[Run]:
        with self._lock:
            rows = self._db.execute(f"SELECT {_COLUMNS} FROM runs WHERE {where}", values).fetchall()  # noqa: S608
        return [_run(row) for row in rows]


def _run(row: tuple[Any, ...]) -> Run:
    identity, rule, state, job, accepted, started, ended, hosts, reason, cancel = row
    return Run(
        id=identity,
        rule=rule,
        state=state,
        job=_job(job),
        accepted=accepted,
        started=started,
        ended=ended,
        hosts=msgspec.json.decode(hosts),
        reason=reason,
        cancel=bool(cancel),
    )


def _job(data: bytes) -> Job | None:
    try:
        return msgspec.json.decode(data, type=Job)
    except (msgspec.MsgspecError, ValueError):
        return None

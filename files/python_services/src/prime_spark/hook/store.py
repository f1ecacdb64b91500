"""The file of the queue: its tables, what a run is, and how it is read and written."""

from __future__ import annotations

import hashlib
import sqlite3
import time
from pathlib import Path
from typing import Any, Literal, get_args

import msgspec

from prime_spark.hook.database import Database
from prime_spark.hook.rules import Job, Priority

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
ACTIVE = "('starting', 'running')"
FAILURES = ("failed", "unreachable", "timed_out", "lost")
WHO_CHARS = 200


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


class Store(Database):
    """The file with its tables, and how runs are read from it."""

    def __init__(self, path: Path, max_queued: int = 1000, max_deliveries: int = 20_000) -> None:
        super().__init__(path, _SCHEMA)
        self._max_queued = max_queued
        self._max_deliveries = max_deliveries
        self._until_pruned = 0

    @staticmethod
    def _move(db: sqlite3.Connection, change: str, *values: object) -> bool:
        return db.execute(f"UPDATE runs SET {change}", values).rowcount == 1  # noqa: S608

    @staticmethod
    def _count(db: sqlite3.Connection, where: str) -> int:
        row: tuple[int] = db.execute(f"SELECT count(*) FROM runs WHERE {where}").fetchone()  # noqa: S608
        return row[0]

    def _select(self, where: str, *values: object) -> list[Run]:
        with self.reading() as db:
            return self._rows(db, where, *values)

    @staticmethod
    def _rows(db: sqlite3.Connection, where: str, *values: object) -> list[Run]:
        rows = db.execute(f"SELECT {_COLUMNS} FROM runs WHERE {where}", values).fetchall()  # noqa: S608
        return [_run(row) for row in rows]

    def _one(self, db: sqlite3.Connection, run: int) -> Run:
        return self._rows(db, "id = ?", run)[0]

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
                fingerprint(job),
                get_args(Priority).index(job.priority),
                time.time(),
                triggered_by[:WHO_CHARS],
                job.applies.run if job.applies else None,
                again_of,
            ),
        )
        assert cursor.lastrowid is not None  # noqa: S101 (there is one after an insert)
        return cursor.lastrowid


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


def fingerprint(job: Job) -> str:
    """Return what two runs have in common that are the same."""
    return hashlib.sha256(msgspec.json.encode(job, order="deterministic")).hexdigest()


def _job(data: bytes) -> Job | None:
    try:
        return msgspec.json.decode(data, type=Job)
    except (msgspec.MsgspecError, ValueError):
        return None

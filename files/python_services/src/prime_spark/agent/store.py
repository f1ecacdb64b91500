"""Remembers how tasks ended, across restarts of the agent."""

from __future__ import annotations

import sqlite3
import threading
import time
from dataclasses import dataclass
from pathlib import Path

_SCHEMA = """
CREATE TABLE IF NOT EXISTS tasks (
    task_id TEXT PRIMARY KEY,
    fingerprint TEXT NOT NULL,
    answer BLOB NOT NULL,
    ended REAL NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS tasks_ended ON tasks (ended);
"""


@dataclass(frozen=True)
class Kept:
    """The answer of an ended task, and the fingerprint of what it was asked."""

    fingerprint: str
    answer: bytes


class AnswerStore:
    """Answers by task id in one SQLite file; the calls block and may come from any thread.

    The newest `max_tasks` of the last `keep_seconds` are kept. An answer that `put` has returned
    for survives a power cut.
    """

    def __init__(self, path: Path, max_tasks: int = 10_000, keep_seconds: float = 14 * 86400.0):
        self._max_tasks = max_tasks
        self._keep_seconds = keep_seconds
        self._lock = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.executescript(_SCHEMA)

    def get(self, task_id: str) -> Kept | None:
        """Return the answer of `task_id`."""
        with self._lock:
            row = self._db.execute(
                "SELECT fingerprint, answer FROM tasks WHERE task_id = ?", (task_id,)
            ).fetchone()
        return None if row is None else Kept(*row)

    def put(self, task_id: str, kept: Kept) -> None:
        """Keep an answer; forget the oldest beyond what is kept."""
        now = time.time()
        with self._lock, self._db:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.execute(
                "INSERT OR REPLACE INTO tasks VALUES (?, ?, ?, ?)",
                (task_id, kept.fingerprint, kept.answer, now),
            )
            self._db.execute("DELETE FROM tasks WHERE ended < ?", (now - self._keep_seconds,))
            self._db.execute(
                "DELETE FROM tasks WHERE task_id IN (SELECT task_id FROM tasks "
                "ORDER BY ended DESC LIMIT -1 OFFSET ?)",
                (self._max_tasks,),
            )

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

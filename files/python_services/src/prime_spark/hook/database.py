"""An SQLite file of the hook: one connection, which calls from any thread share."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

# Another process, a command of an operator, writes for milliseconds.
_BUSY_SECONDS = 10.0


class Database:
    """The file; calls block. With `synchronous` FULL a commit survives a power cut."""

    def __init__(
        self, path: Path, schema: str, *, synchronous: Literal["FULL", "NORMAL"] = "FULL"
    ) -> None:
        self._lock = threading.Lock()
        self._db = sqlite3.connect(
            path, timeout=_BUSY_SECONDS, check_same_thread=False, isolation_level=None
        )
        try:
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute(f"PRAGMA synchronous = {synchronous}")
            self._db.executescript(schema)
        except BaseException:
            self._db.close()
            raise

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Write all of what is done within, or nothing of it."""
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
            except BaseException:
                # SQLite may have done so by itself, on a full disk for example.
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Read, while nobody else uses the connection."""
        with self._lock:
            yield self._db

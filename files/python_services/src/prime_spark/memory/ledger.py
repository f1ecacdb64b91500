"""What the memory has to know about its tiers whatever restarts: a file on the API's own disk."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import structlog

from prime_spark.memory.errors import QuotaError

_log = structlog.get_logger(__name__)

# `files`: whose file of the NAS takes how much; `used` is kept by triggers, `*` the sum of all.
# `outdated`: keys whose old value could not be removed from a tier that was down.
_SCHEMA = """
CREATE TABLE IF NOT EXISTS files (
    key TEXT PRIMARY KEY, owner TEXT NOT NULL, bytes INTEGER NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS used (owner TEXT PRIMARY KEY, bytes INTEGER NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS outdated (
    tier INTEGER NOT NULL, key TEXT NOT NULL, PRIMARY KEY (tier, key)
) STRICT;
CREATE TRIGGER IF NOT EXISTS added AFTER INSERT ON files BEGIN
    INSERT INTO used VALUES (NEW.owner, NEW.bytes), ('*', NEW.bytes)
        ON CONFLICT (owner) DO UPDATE SET bytes = bytes + excluded.bytes;
END;
CREATE TRIGGER IF NOT EXISTS removed AFTER DELETE ON files BEGIN
    UPDATE used SET bytes = bytes - OLD.bytes WHERE owner IN (OLD.owner, '*');
END;
"""
_UNREADABLE = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


class Ledger:
    """One SQLite file; the calls block, may come from any thread, and outlive a power cut.

    A file that cannot be read is set aside and begun again: of the files on the NAS only the sum
    is known then, until they are written again.
    """

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._recounted = False
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._db = _open(path)
        except sqlite3.DatabaseError as error:
            # What is wrong with the disk (full, read-only) is not the file's fault.
            if getattr(error, "sqlite_errorcode", 0) & 0xFF not in _UNREADABLE:
                raise
            aside = path.with_suffix(".unreadable")
            _log.error("the memory's ledger is unreadable", error=str(error), kept=str(aside))
            path.rename(aside)
            for suffix in ("-wal", "-shm"):
                path.with_name(path.name + suffix).unlink(missing_ok=True)
            self._db = _open(path)

    def recount(self, sizes: Callable[[], Mapping[str, int]]) -> None:
        """Count what lies on the NAS, once after a start: a crash may have left a wrong count.

        What is not known yet is nobody's. No file may change before the first call has returned.
        """
        if self._recounted:
            return
        found = sizes()
        with self._changing():
            if not self._recounted:
                self._take_over(found)
        self._recounted = True

    @contextlib.contextmanager
    def taking(
        self, key: str, owner: str, size: int, *, owner_bytes: int, all_bytes: int
    ) -> Iterator[None]:
        """Count a file of `owner` that is written inside; what fails there counts no more.

        Nobody else may change the file meanwhile. Raises QuotaError, of tier 2, before anything is
        written.
        """
        with self._changing():
            before = self._row(key)
            self._db.execute("DELETE FROM files WHERE key = ?", (key,))
            for reason, who, limit in (("owner", owner, owner_bytes), ("all", "*", all_bytes)):
                used = self._used(who)
                if used + size > limit:
                    raise QuotaError(2, "nas", reason, used=used, limit=limit, size=size)  # type: ignore[arg-type]
            self._db.execute("INSERT INTO files VALUES (?, ?, ?)", (key, owner, size))
        try:
            yield
        except BaseException:
            with self._changing():
                self._db.execute("DELETE FROM files WHERE key = ?", (key,))
                if before is not None:
                    self._db.execute("INSERT INTO files VALUES (?, ?, ?)", (key, *before))
            raise

    def gone(self, key: str) -> None:
        """The file is not there any more."""
        with self._changing():
            self._db.execute("DELETE FROM files WHERE key = ?", (key,))

    def outdated(self) -> list[tuple[int, str]]:
        """Return tier and key of values that must not be believed."""
        with self._lock:
            return self._db.execute("SELECT tier, key FROM outdated").fetchall()

    def mark(self, tier: int, key: str) -> None:
        """The value of `key` in `tier` must not be believed."""
        with self._changing():
            self._db.execute("INSERT OR IGNORE INTO outdated VALUES (?, ?)", (tier, key))

    def clear(self, tier: int, key: str) -> None:
        """The value is gone, or new."""
        with self._changing():
            self._db.execute("DELETE FROM outdated WHERE tier = ? AND key = ?", (tier, key))

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        with self._lock, self._db:
            self._db.execute("BEGIN IMMEDIATE")
            yield

    def _take_over(self, found: Mapping[str, int]) -> None:
        rows = self._db.execute("SELECT key, owner, bytes FROM files").fetchall()
        owners = {key: owner for key, owner, _ in rows}
        counted = {(key, size) for key, _, size in rows}
        there = set(found.items())
        self._db.executemany(
            "DELETE FROM files WHERE key = ?", [(key,) for key, _ in counted - there]
        )
        self._db.executemany(
            "INSERT INTO files VALUES (?, ?, ?)",
            [(key, owners.get(key, ""), size) for key, size in there - counted],
        )

    def _row(self, key: str) -> tuple[str, int] | None:
        row: tuple[str, int] | None = self._db.execute(
            "SELECT owner, bytes FROM files WHERE key = ?", (key,)
        ).fetchone()
        return row

    def _used(self, owner: str) -> int:
        row = self._db.execute("SELECT bytes FROM used WHERE owner = ?", (owner,)).fetchone()
        return row[0] if row else 0


def _open(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
    try:
        # By this process alone: what others would be shown needs room, also to look at a full disk.
        db.execute("PRAGMA locking_mode = EXCLUSIVE")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.executescript(_SCHEMA)
    except BaseException:
        db.close()
        raise
    return db

"""A bounded queue on disk, in SQLite: it outlives kill -9, power cuts and a disk that fails.

Layout of the directory:

    samples.db, -wal    table `samples`: number, payload; no number is given out twice
    damaged.db, -wal    the last database that could not be read on, for a post-mortem

The one process that uses it holds the database locked. Its log's index so is in memory: a shared
one is a mapped file, and a disk that fails under a mapped file kills the process.
"""

from __future__ import annotations

import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from prime_spark.telemetry import segments

_T = TypeVar("_T")

_SCHEMA = """CREATE TABLE IF NOT EXISTS samples (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    payload BLOB NOT NULL
)"""
_PAGE = 4096
_LOG_PAGES = 256  # beyond that SQLite takes the log over into the database
# Without what SQLite says more exactly in the higher bits.
_UNREADABLE = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_FAILED_READS = {sqlite3.SQLITE_IOERR_READ, sqlite3.SQLITE_IOERR_SHORT_READ}


class Record(NamedTuple):
    """A buffered payload and its sequence number."""

    number: int
    payload: bytes


class BufferBusyError(Exception):
    """Another process is using the buffer directory."""


@dataclass
class BufferStats:
    """What the buffer holds, and what has happened to it since it was opened."""

    records: int = 0
    bytes: int = 0
    dropped: int = 0
    damaged: int = 0  # databases set aside; `dropped` counts their records, one at least
    in_memory: int = 0
    error: str = ""  # why the disk takes nothing; empty while it does


class DiskBuffer:
    """First in, first out; `append`, `peek` the oldest, `ack` what was delivered.

    The database takes at most `max_bytes` and its log a megabyte; when it is full, the oldest
    records go and are counted as dropped. A database that cannot be read is set aside. While the
    disk takes nothing, the newest `memory_records` records are kept in memory, and written when it
    does again; what is on a full disk stays there, since deleting takes room in the log first.
    Disk errors are never raised, see `stats`. Methods may be called from any thread.
    """

    def __init__(self, path: Path, max_bytes: int, *, memory_records: int = 1024) -> None:
        self._path = path
        self._file = path / "samples.db"
        self._max_bytes = max_bytes
        self._memory_records = memory_records
        self._mutex = threading.Lock()
        self._db: sqlite3.Connection | None = None
        self._memory: deque[Record] = deque()  # newer than what is on disk
        self._next = -(2**62)  # below all on disk, until it is known what is there
        self._done = 0  # rows up to this number are delivered, even if they could not be deleted
        self._rows = 0  # beyond it
        self._stats = BufferStats()
        self._try(lambda _: None)

    def append(self, payload: bytes) -> None:
        """Add a record."""
        if 2 * len(payload) > self._max_bytes:
            raise ValueError(f"a record of {len(payload)} bytes does not fit into the buffer")
        with self._mutex:
            self._memory.append(Record(self._next, payload))
            self._next += 1
            self._make_room()
            if self._try(self._insert):
                self._rows += len(self._memory)
                self._memory.clear()
                self._stats.error = ""
            while len(self._memory) > self._memory_records:
                self._memory.popleft()
                self._stats.dropped += 1

    def peek(self, max_records: int, max_bytes: int) -> list[Record]:
        """Return the oldest records, at least one if there is any, without removing them."""
        query = "SELECT number, payload FROM samples WHERE number > ? ORDER BY number LIMIT ?"
        with self._mutex:
            rows = self._try(partial(_fetch, query, (self._done, max_records)))
            records = [Record(*row) for row in rows or list(self._memory)[:max_records]]
        fitting = sum(size <= max_bytes for size in accumulate(len(r.payload) for r in records))
        return records[: max(1, fitting)]

    def ack(self, records: Sequence[Record]) -> None:
        """Remove `records`, a leading part of what `peek` returned, for good."""
        delivered = {record.number for record in records}
        with self._mutex:
            while self._memory and self._memory[0].number in delivered:
                delivered.remove(self._memory.popleft().number)
            # Others may have been dropped meanwhile, to make room.
            if rows := [number for number in delivered if number > self._done]:
                self._done = max(rows)
                self._rows -= len(rows)
                self._delete(self._done)

    def sync(self) -> None:
        """Flush waiting records to the device; does nothing when none are waiting."""
        with self._mutex:
            if self._rows:
                self._try(lambda db: db.execute("PRAGMA wal_checkpoint"))

    def stats(self) -> BufferStats:
        """Return what is held and what was lost; never waits for the disk."""
        in_memory = len(self._memory)
        return replace(self._stats, records=self._rows + in_memory, in_memory=in_memory)

    def close(self) -> None:
        """Flush to the device and let go of the directory."""
        self.sync()
        with self._mutex:
            self._disconnect()

    # -- the database -------------------------------------------------------------------------

    def _try(self, work: Callable[[sqlite3.Connection], _T]) -> _T | None:
        """Return what `work` does with the database, or None when the disk fails."""
        try:
            if self._db is not None and not self._file.exists():
                self._set_aside()
            db = self._db or self._open()
            result = work(db)
            used, free = (
                db.execute(f"PRAGMA {name}").fetchone()[0]
                for name in ("page_count", "freelist_count")
            )
            self._stats.bytes = (used - free) * _PAGE
        except (sqlite3.Error, OSError) as error:
            self._stats.error = f"{type(error).__name__}: {error}"
            code = getattr(error, "sqlite_errorcode", 0)
            if code == sqlite3.SQLITE_BUSY:
                raise BufferBusyError(f"{self._file} is in use by another process") from None
            if code & 0xFF in _UNREADABLE or code in _FAILED_READS:
                with suppress(OSError):  # read-only: it stays where it is, memory has to do
                    self._set_aside()
            return None
        return result

    def _open(self) -> sqlite3.Connection:
        self._path.mkdir(mode=0o700, parents=True, exist_ok=True)
        db = sqlite3.connect(self._file, timeout=0, check_same_thread=False, isolation_level=None)
        try:
            db.execute(f"PRAGMA page_size = {_PAGE}")
            db.execute("PRAGMA locking_mode = EXCLUSIVE")
            db.execute("PRAGMA journal_mode = WAL")
            db.execute(f"PRAGMA wal_autocheckpoint = {_LOG_PAGES}")
            db.execute(_SCHEMA)
            for payloads in segments.take_over(self._path):
                with db:
                    db.execute("BEGIN")
                    db.executemany(
                        "INSERT INTO samples (payload) VALUES (?)", [(p,) for p in payloads]
                    )
            db.execute("PRAGMA synchronous = NORMAL")  # a power cut costs what is not flushed
            (rows,) = db.execute(
                "SELECT count(*) FROM samples WHERE number > ?", (self._done,)
            ).fetchone()
            (last,) = db.execute("SELECT ifnull(max(seq), 0) FROM sqlite_sequence").fetchone()
        except BaseException:
            db.close()
            raise
        first = self._memory[0].number if self._memory else self._next
        if (shift := last + 1 - first) > 0:
            self._memory = deque(Record(r.number + shift, r.payload) for r in self._memory)
            self._next += shift
        self._db, self._rows = db, rows
        return db

    def _insert(self, db: sqlite3.Connection) -> bool:
        with db:
            db.execute("BEGIN")
            db.executemany("INSERT INTO samples VALUES (?, ?)", self._memory)
        return True

    def _make_room(self) -> None:
        """Drop the oldest rows until what is in memory fits."""
        need = 4 * _PAGE + 2 * sum(len(record.payload) for record in self._memory)
        query = "SELECT number FROM samples WHERE number > ? ORDER BY number LIMIT ?"
        while self._rows and self._stats.bytes + need > self._max_bytes:
            share = (self._done, max(1, self._rows // 16))
            oldest = self._try(partial(_fetch, query, share))
            if not oldest or not self._delete(oldest[-1][0]):
                return
            self._done = oldest[-1][0]
            self._rows -= len(oldest)
            self._stats.dropped += len(oldest)

    def _delete(self, last: int) -> bool:
        """Delete the rows with numbers up to `last`."""
        query = "DELETE FROM samples WHERE number <= ?"
        return self._try(lambda db: db.execute(query, (last,))) is not None

    def _set_aside(self) -> None:
        """Give up the database, and keep what is left of it; the next call makes a new one."""
        self._disconnect()
        for suffix in ("", "-wal"):
            with suppress(FileNotFoundError):
                Path(f"{self._file}{suffix}").replace(self._path / f"damaged.db{suffix}")
        self._stats.damaged += 1
        self._stats.dropped += max(1, self._rows)  # of one that never opened nobody knows
        self._rows = 0
        self._done = (self._memory[0].number if self._memory else self._next) - 1

    def _disconnect(self) -> None:
        if self._db is not None:
            with suppress(sqlite3.Error):
                self._db.close()
            self._db = None


def _fetch(query: str, parameters: Sequence[int], db: sqlite3.Connection) -> list[Any]:
    return db.execute(query, parameters).fetchall()

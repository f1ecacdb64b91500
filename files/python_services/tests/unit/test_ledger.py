"""The memory's ledger against files that are damaged, and disks that fail."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from prime_spark.memory.ledger import Ledger


def marked(path: Path) -> None:
    ledger = Ledger(path)
    ledger.mark(1, "key")
    ledger.close()


def test_a_disk_that_fails_costs_no_marks(tmp_path: Path) -> None:
    path = tmp_path / "memory.sqlite"
    marked(path)
    log = tmp_path / "memory.sqlite-wal"
    log.mkdir()  # SQLite cannot open its log, as on a disk that is read-only
    with pytest.raises(sqlite3.OperationalError):
        Ledger(path)
    log.rmdir()
    ledger = Ledger(path)
    assert ledger.outdated() == [(1, "key")]
    ledger.close()


def test_what_is_no_database_is_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "memory.sqlite"
    path.write_bytes(b"not a database" * 1000)
    marked(path)
    assert path.with_suffix(".unreadable").read_bytes().startswith(b"not a database")

"""Sessions of the page and locked accounts, in an SQLite file of their own.

The hook mends the API and Redis, so people log in to it while both are down. Of a session the file
has a hash; who reads it cannot use it.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import math
import secrets
import sqlite3
import time
from pathlib import Path
from typing import Any

import structlog

from prime_spark.accounts.lockout import LockedError, LockoutConfig, names_of
from prime_spark.accounts.users import User, Users
from prime_spark.hook.database import Database

_log = structlog.get_logger(__name__)

_SCHEMA = """
CREATE TABLE IF NOT EXISTS sessions (
    token TEXT PRIMARY KEY,
    username TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    begun REAL NOT NULL,
    used REAL NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS attempts (
    name TEXT PRIMARY KEY,
    failures INTEGER NOT NULL DEFAULT 0,
    locked REAL NOT NULL DEFAULT 0,
    forget REAL NOT NULL
) STRICT, WITHOUT ROWID;
"""
# How exact the idle time of a session is: not every request of a page is a write.
_USED_SECONDS = 30.0


class Store(Database):
    """The file with its tables. What it loses, people do again."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, _SCHEMA, synchronous="NORMAL")

    def row(self, query: str, *values: object) -> tuple[Any, ...] | None:
        """Return the first row of a query."""
        with self.reading() as db:
            row: tuple[Any, ...] | None = db.execute(query, values).fetchone()
            return row


def open_store(path: Path) -> Store:
    """Open the file. One that is damaged is set aside: people log in again.

    Raises sqlite3.Error or OSError when no file can be made there.
    """
    try:
        return Store(path)
    except sqlite3.OperationalError:
        raise  # The disk is full, say: the file itself may be good.
    except sqlite3.DatabaseError as error:
        aside = path.with_suffix(f".damaged-{time.time_ns()}")
        _log.warning("the file of logins is damaged", error=str(error), set_aside=str(aside))
        for suffix in ("-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        path.rename(aside)
        return Store(path)


class Sessions:
    """Who is logged in. A session ends unused, in any case, and with the user's password."""

    def __init__(
        self, store: Store, users: Users, *, idle_seconds: float, max_seconds: float
    ) -> None:
        self._store = store
        self.users = users
        self._idle_seconds = idle_seconds
        self._max_seconds = max_seconds

    def begin(self, username: str) -> str:
        """Begin a session; return its token. Sessions that are over are forgotten."""
        token, now = secrets.token_urlsafe(32), time.time()
        with self._store.transaction() as db:
            db.execute(
                "DELETE FROM sessions WHERE used < ? OR begun < ?",
                (now - self._idle_seconds, now - self._max_seconds),
            )
            db.execute(
                "INSERT INTO sessions VALUES (?, ?, ?, ?, ?)",
                (_hash(token), username, self.users.fingerprint(username) or "", now, now),
            )
        return token

    def user(self, token: str, *, use: bool = True) -> User | None:
        """Return whose session it is. Without `use`, it counts as unused all the same."""
        row = self._store.row(
            "SELECT username, fingerprint, begun, used FROM sessions WHERE token = ?", _hash(token)
        )
        if row is None:
            return None
        username, fingerprint, begun, used = row
        now = time.time()
        # In the future, when the clock was wrong then: that is no longer a session, either.
        if abs(now - used) > self._idle_seconds or abs(now - begun) > self._max_seconds:
            return None
        user = self.users.get(username)
        if user is None or user.fingerprint != fingerprint:
            return None
        if use and now - used > min(_USED_SECONDS, self._idle_seconds / 10):
            # With a disk that is full one has to get in all the more.
            with contextlib.suppress(sqlite3.Error), self._store.transaction() as db:
                db.execute("UPDATE sessions SET used = ? WHERE token = ?", (now, _hash(token)))
        return user

    def end(self, token: str) -> None:
        """End a session."""
        with self._store.transaction() as db:
            db.execute("DELETE FROM sessions WHERE token = ?", (_hash(token),))


class Lockout:
    """Counts attempts to log in as the API does: see LockoutConfig.

    An attempt counts as failed until it has succeeded, so attempts at the same moment do not slip
    through together.
    """

    def __init__(self, store: Store, config: LockoutConfig) -> None:
        self._store = store
        self._config = config

    def attempt(self, username: str, address: str) -> None:
        """Note an attempt; raises LockedError when it may not be made."""
        config, now = self._config, time.time()
        account, here = names_of(username, address)
        with self._store.transaction() as db:
            db.execute("DELETE FROM attempts WHERE forget < ?", (now,))
            counted = [(here, config.failures)]
            if not db.execute("SELECT 1 FROM attempts WHERE name = ?", (_known(here),)).fetchone():
                counted.append((account, config.failures_anywhere))
            for name, _ in counted:
                row = db.execute("SELECT locked FROM attempts WHERE name = ?", (name,)).fetchone()
                # Later than that is what a clock has locked that was wrong then.
                if row is not None and now < row[0] <= now + config.max_seconds:
                    raise LockedError(math.ceil(row[0] - now))
            for name, free in counted:
                self._count(db, name, free, now)

    def _count(self, db: sqlite3.Connection, name: str, free: int, now: float) -> None:
        config = self._config
        (failures,) = db.execute(
            "INSERT INTO attempts (name, failures, forget) VALUES (?, 1, ?) ON CONFLICT (name) "
            "DO UPDATE SET failures = failures + 1, forget = excluded.forget RETURNING failures",
            (name, now + config.forget_seconds),
        ).fetchone()
        if failures >= free:
            seconds = min(
                config.first_seconds * 2.0 ** min(failures - free, 32), config.max_seconds
            )
            db.execute("UPDATE attempts SET locked = ? WHERE name = ?", (now + seconds, name))

    def succeeded(self, username: str, address: str) -> None:
        """Forget what was before at this address, and know it from now on."""
        account, here = names_of(username, address)
        known = time.time() + self._config.known_seconds
        with self._store.transaction() as db:
            if not db.execute("SELECT 1 FROM attempts WHERE name = ?", (_known(here),)).fetchone():
                db.execute("UPDATE attempts SET failures = failures - 1 WHERE name = ?", (account,))
            db.execute("DELETE FROM attempts WHERE name = ?", (here,))
            db.execute(
                "INSERT OR REPLACE INTO attempts (name, forget) VALUES (?, ?)",
                (_known(here), known),
            )


def form_token(token: str) -> str:
    """Return what every form of a session contains: another site knows neither of both."""
    return hmac.new(token.encode(), b"form", "sha256").hexdigest()


def _known(here: str) -> str:
    return f"known {here}"


def _hash(token: str) -> str:
    """Return what is kept of a token: it is random, so a plain hash is enough."""
    return hashlib.sha256(token.encode()).hexdigest()

"""What has drifted: the report of playbooks/drift.yml, and the history of those reports."""

from __future__ import annotations

import sqlite3
from typing import Annotated, Literal

import msgspec

from prime_spark.hook.queue import Queue

DriftState = Literal["in sync", "drifted", "outdated", "unknown", "refused", "unreachable"]

_MAX_HOSTS = 1000
_MAX_WHY = 50
_WHY_CHARS = 500
# Of each host so many reports are kept.
_KEPT = 100
_SCHEMA = """
CREATE TABLE IF NOT EXISTS drift (
    host TEXT NOT NULL,
    run INTEGER NOT NULL,
    at REAL NOT NULL,
    state TEXT NOT NULL,
    roles BLOB NOT NULL,
    PRIMARY KEY (host, run)
) STRICT, WITHOUT ROWID;
"""


class RoleDrift(msgspec.Struct, frozen=True):
    """How a role of a host stands, and what differs."""

    state: DriftState
    why: list[str]


class HostReport(msgspec.Struct, frozen=True):
    """How a host stands: as the worst of its roles."""

    state: DriftState
    roles: dict[str, RoleDrift]


class Report(msgspec.Struct, frozen=True):
    """What playbooks/drift.yml writes."""

    hosts: Annotated[dict[str, HostReport], msgspec.Meta(max_length=_MAX_HOSTS)]


class HostDrift(msgspec.Struct, frozen=True):
    """What a run said of a host at a Unix time."""

    host: str
    run: int
    at: float
    state: DriftState
    roles: dict[str, RoleDrift]


class Drift:
    """The reports, in the file of the queue."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        with queue.transaction() as db:
            db.execute(_SCHEMA)

    def store(self, run: int, at: float, report: Report, *, whole: bool) -> list[HostDrift]:
        """Keep a report, once; return what is new in it: hosts whose state has changed.

        After a report of the whole fleet, hosts that are not in it are forgotten.
        """
        before = {each.host: each.state for each in self.latest()}
        rows = [
            HostDrift(host, run, at, entry.state, _bounded(entry.roles))
            for host, entry in report.hosts.items()
        ]
        with self._queue.transaction() as db:
            for row in rows:
                db.execute(
                    "INSERT OR IGNORE INTO drift VALUES (?, ?, ?, ?, ?)",
                    (row.host, run, at, row.state, msgspec.json.encode(row.roles)),
                )
            if whole and rows:
                db.execute(
                    "DELETE FROM drift WHERE host NOT IN (SELECT host FROM drift WHERE run = ?)",
                    (run,),
                )
            db.execute(
                "DELETE FROM drift WHERE (host, run) IN (SELECT host, run FROM (SELECT host, run, "
                "row_number() OVER (PARTITION BY host ORDER BY run DESC) AS place FROM drift) "
                "WHERE place > ?)",
                (_KEPT,),
            )
        return [row for row in rows if before.get(row.host, "in sync") != row.state]

    def latest(self) -> list[HostDrift]:
        """Return how each host stands, by name."""
        return self._read(
            "SELECT host, max(run), at, state, roles FROM drift GROUP BY host ORDER BY host"
        )

    def history(self, host: str, number: int = _KEPT) -> list[HostDrift]:
        """Return the reports about a host, the newest first."""
        return self._read(
            "SELECT host, run, at, state, roles FROM drift WHERE host = ? "
            "ORDER BY run DESC LIMIT ?",
            host,
            number,
        )

    def _read(self, query: str, *values: object) -> list[HostDrift]:
        with self._queue.reading() as db:
            rows = db.execute(query, values).fetchall()
        return [_entry(row) for row in rows]


def _entry(row: sqlite3.Row) -> HostDrift:
    host, run, at, state, roles = row
    return HostDrift(host, run, at, state, msgspec.json.decode(roles, type=dict[str, RoleDrift]))


def _bounded(roles: dict[str, RoleDrift]) -> dict[str, RoleDrift]:
    """Return as much of the differences as is kept."""
    return {
        name: RoleDrift(role.state, [why[:_WHY_CHARS] for why in role.why[:_MAX_WHY]])
        for name, role in roles.items()
    }

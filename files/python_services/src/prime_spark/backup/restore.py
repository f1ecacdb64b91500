"""Restoring a database server's files to a second of the operator's choice."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from prime_spark.backup.postgres import BaseRecord
from prime_spark.backup.restic import Restic, Snapshot

# In the restored data directory, which is where PostgreSQL runs restore_command.
WAL_DIRECTORY = "prime_spark_wal"


class RestoreError(Exception):
    """There is nothing to restore; the message says what there is."""


class Base(msgspec.Struct, frozen=True):
    """A base backup that can be restored, with the WAL that goes with it."""

    record: BaseRecord
    snapshot: Snapshot
    wal: Snapshot

    @property
    def earliest(self) -> datetime:
        """The first moment that it can be brought to."""
        return datetime.fromtimestamp(self.record.ended, UTC)

    @property
    def latest(self) -> datetime:
        """The last moment that it can be brought to."""
        return self.wal.time.astimezone(UTC)


async def bases(restic: Restic, name: str) -> list[Base]:
    """Return what can be restored, the oldest first."""
    snapshots = await restic.snapshots(name)
    tar = {found.tag("from-"): found for found in snapshots if "base" in found.tags}
    wal = [found for found in snapshots if "wal" in found.tags]
    found = []
    for snapshot in snapshots:
        if "record" not in snapshot.tags:
            continue
        segment = snapshot.tag("from-")
        # A directory that begins no later has the base's first segment; the newest has most.
        fitting = [one for one in wal if one.tag("from-") <= segment]
        if segment in tar and fitting:
            record = msgspec.json.decode(await restic.read(snapshot), type=BaseRecord)
            found.append(Base(record, tar[segment], fitting[-1]))
    return found


def choose(found: list[Base], until: datetime | None) -> Base:
    """Return the newest base from which `until` (the newest moment when None) can be reached."""
    if not found:
        raise RestoreError("there is no finished backup")
    if until is None:
        return found[-1]
    fitting = [base for base in found if base.earliest <= until <= base.latest]
    if not fitting:
        ranges = ", ".join(f"{base.earliest:%F %T} to {base.latest:%F %T}" for base in found)
        raise RestoreError(f"nothing reaches {until:%F %T} UTC; there is {ranges}")
    return fitting[-1]


async def restore_files(
    restic: Restic, base: Base, target: Path, *, until: datetime | None = None, point: str = ""
) -> None:
    """Put the server's files into `target`, an empty directory, ready to recover when started.

    The server then stops at `until`, at the restore point `point`, or at the end of its WAL.
    """
    check_empty(target)
    await restic.unpack(base.snapshot, target)
    wal = target / WAL_DIRECTORY
    wal.mkdir(mode=0o700)
    await restic.restore(base.wal, wal)
    prepare_recovery(target, until=until, point=point)


def check_empty(target: Path) -> None:
    """Raise RestoreError when there is something in a directory."""
    if any(target.iterdir()):
        raise RestoreError(f"{target} is not empty")


def prepare_recovery(target: Path, *, until: datetime | None, point: str) -> None:
    """Tell the server that starts on these files how far to go."""
    # The last one was being written: recovery ends where its content does.
    for path in (target / WAL_DIRECTORY).glob("*.partial"):
        path.rename(path.with_suffix(""))
    settings = {
        "restore_command": f'cp {WAL_DIRECTORY}/%f "%p"',
        "recovery_target_action": "promote",
    }
    if point:
        settings["recovery_target_name"] = point
    elif until is not None:
        settings["recovery_target_time"] = until.astimezone(UTC).isoformat()
    with (target / "postgresql.auto.conf").open("a") as stream:
        stream.writelines(f"{name} = '{value}'\n" for name, value in settings.items())
    (target / "recovery.signal").touch(mode=0o600)
    owner = target.stat()
    for path in target.rglob("*"):
        os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)

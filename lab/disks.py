"""The hosts' disks and their snapshots.

All disks of the fleet lie in one volume. STATE/disks holds the volumes and the names that lead to
them:

    volumes/<id>/<host>/…     a volume: the disks of every host
    current -> volumes/<id>   what the hosts run on
    snapshots/<name> -> …     what `save` kept, with snapshot.json and the fleet's identity beside
                              the disks: its keys and secrets

A name changes in one step and only once its volume is complete; a volume without a name is what an
interrupted command left, and goes. So a crash leaves the old state or the new one.

STATE/disks is the mount point of the btrfs file system in STATE/disks.btrfs, where a volume is a
subvolume and copying one takes milliseconds. Only the supervisor's mount namespace has the mount:
it ends, and the loop device with it, when the lab does. Without btrfs a volume is a directory and
copied file by file.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
import time
import uuid
from pathlib import Path
from typing import Any, TypedDict

from lab.common import (
    CHECKOUT,
    DISKS,
    DISKS_IMAGE,
    SSH,
    STATE,
    LabError,
    remove_tree,
    run,
    write_if_changed,
)
from plugins.module_utils.process import finish

VOLUMES = DISKS / "volumes"
SNAPSHOTS = DISKS / "snapshots"
CURRENT = DISKS / "current"
NO_SNAPSHOT_STATUS = 3

_MAX_BYTES = 64 * 1024**3
_RECORD = "snapshot.json"
_IDENTITY = "identity"
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
# What a fleet is known by. Sockets and the paths of a checkout are not part of it.
_IDENTITY_DIRECTORIES = ("ssh", "secrets")
_NOT_IDENTITY = {"control", "config"}
_MOUNT_OPTIONS = "loop,noatime,nodatacow,discard=async"


class NoSnapshotError(LabError):
    """There is no such snapshot, or it has another key."""


class Record(TypedDict):
    """What is known of a snapshot (snapshot.json): the hosts that ran, seconds since the epoch."""

    key: str
    created: float
    hosts: list[str]


def image_wanted() -> bool:
    """Whether this machine can keep the disks on btrfs."""
    if os.environ.get("PRIME_SPARK_LAB_DISKS") == "directory" or not shutil.which("mkfs.btrfs"):
        return False
    if shutil.which("modprobe"):
        run(["modprobe", "--quiet", "btrfs"], check=False)
    known = Path("/proc/filesystems").read_text().split()
    return "btrfs" in known and Path("/dev/loop-control").exists()


def attach() -> str | None:
    """Mount the disks, made on first use; return a note when they lie in plain directories.

    Called in a mount namespace of the lab's own.
    """
    _refuse_old_layout()
    DISKS.mkdir(parents=True, exist_ok=True, mode=0o700)
    note = None
    new = not DISKS_IMAGE.exists() and not VOLUMES.exists()
    if new and image_wanted():
        _make_image()
    if DISKS_IMAGE.exists():
        try:
            run(["mount", "-t", "btrfs", "-o", _MOUNT_OPTIONS, DISKS_IMAGE, DISKS])
        except LabError as error:
            if not new:
                raise
            note = f"{error}; "
            DISKS_IMAGE.unlink()
    if not DISKS_IMAGE.exists():
        note = f"disks: {note or ''}without btrfs `save` and `restore` copy every file"
    VOLUMES.mkdir(exist_ok=True)
    SNAPSHOTS.mkdir(exist_ok=True)
    return note


def ensure_current() -> Path:
    """The volume that the hosts run on, made when there is none; for the supervisor alone.

    It also ends what an interrupted command began.
    """
    if not CURRENT.exists():
        volume = VOLUMES / uuid.uuid4().hex
        if _on_btrfs():
            run(["btrfs", "subvolume", "create", volume])
        else:
            volume.mkdir()
        _point(CURRENT, volume)
    _install_identity()
    _collect_garbage()
    return CURRENT.resolve()


def save(name: str, key: str, hosts: list[str]) -> None:
    """Keep the disks of the stopped hosts and the fleet's identity under a name."""
    volume = _copy(ensure_current())
    for directory in _IDENTITY_DIRECTORIES:
        _copy_identity(STATE / directory, volume / _IDENTITY / directory)
    record = Record(key=key, created=time.time(), hosts=hosts)
    write_if_changed(volume / _RECORD, json.dumps(record) + "\n")
    _sync()
    _point(SNAPSHOTS / name, volume)
    _collect_garbage()


def restore(name: str) -> None:
    """Put the stopped hosts on a copy of a snapshot, its identity into place."""
    volume = _copy((SNAPSHOTS / name).resolve(strict=True))
    (volume / _RECORD).unlink()
    _sync()
    _point(CURRENT, volume)
    _install_identity()
    _collect_garbage()


def check(name: str, key: str | None, bases: Path) -> Record:
    """Return a snapshot's record; raise NoSnapshotError unless it can be restored.

    A key of None is any key; `bases` is the directory that the disks' bases have to be in.
    """
    records = snapshots()
    if name not in records:
        raise NoSnapshotError(
            f"there is no snapshot {name}; there are: {', '.join(records) or '-'}"
        )
    if key is not None and records[name]["key"] != key:
        raise NoSnapshotError(f"the snapshot {name} has the key {records[name]['key']}, not {key}")
    for path in (SNAPSHOTS / name).glob("*/base"):
        if not (bases / path.read_text().strip()).is_dir():
            raise NoSnapshotError(
                f"the snapshot {name} stands on the base {path.read_text().strip()}, which is gone"
            )
    return records[name]


def snapshots() -> dict[str, Record]:
    """{name: record} of every snapshot, the oldest first."""
    found: dict[str, Record] = {}
    for path in SNAPSHOTS.iterdir():
        found[path.name] = json.loads((path / _RECORD).read_text())
    return dict(sorted(found.items(), key=lambda item: item[1]["created"]))


def report() -> dict[str, Any]:
    """What lies on the disks: {"hosts": names, "snapshots": {name: record and bytes}}.

    A snapshot's bytes are those of its files, also of those that it shares with others.
    """
    listed = {}
    for name, record in snapshots().items():
        size = run(["du", "--summarize", "--block-size=1", (SNAPSHOTS / name).resolve()]).stdout
        listed[name] = {**record, "bytes": int(size.split()[0])}
    return {
        "hosts": sorted(path.parent.name for path in CURRENT.glob("*/upper")),
        "snapshots": listed,
    }


def forget(name: str) -> None:
    """Delete a snapshot."""
    if name not in snapshots():
        raise NoSnapshotError(f"there is no snapshot {name}")
    (SNAPSHOTS / name).unlink()
    _collect_garbage()


def drop_current() -> None:
    """Delete the hosts' disks, keep the snapshots."""
    CURRENT.unlink(missing_ok=True)
    _collect_garbage()


def used_bases() -> set[str]:
    """Names of the bases that any disk, also one of a snapshot, stands on."""
    return {path.read_text().strip() for path in VOLUMES.glob("*/*/base")}


def check_name(name: str) -> None:
    """Raise LabError unless a snapshot may be called so."""
    if not _NAME.fullmatch(name):
        raise LabError(f"{name!r} names no snapshot: letters, digits and . _ - do")


def apart(*arguments: str) -> Any:
    """Run a command of `main` while the lab is down, in a mount namespace that ends with it."""
    argv = ["unshare", "--mount", sys.executable, "-m", "lab.disks", *arguments]
    result = finish(argv, cwd=CHECKOUT)
    if result.returncode != 0:
        error = NoSnapshotError if result.returncode == NO_SNAPSHOT_STATUS else LabError
        raise error(result.stderr.strip())
    return json.loads(result.stdout)


def exist() -> bool:
    """Whether there are disks or snapshots, seen from anywhere."""
    return DISKS_IMAGE.exists() or VOLUMES.exists()


def remove() -> bool:
    """Delete all disks and snapshots; called where they are not mounted. False: there were none."""
    found = DISKS.exists() or DISKS_IMAGE.exists()
    remove_tree(DISKS)
    DISKS_IMAGE.unlink(missing_ok=True)
    return found


# --- below ----------------------------------------------------------------------------------


def _refuse_old_layout() -> None:
    if not DISKS_IMAGE.exists() and any(DISKS.glob("*/upper")):
        raise LabError(
            f"the disks in {DISKS} were made by an older version of the lab: delete them with "
            "`python3 -m lab destroy --disks`"
        )


def _make_image() -> None:
    partial = DISKS_IMAGE.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    with partial.open("wb") as stream:
        # Sparse: it takes what is written, and gives back what is deleted.
        stream.truncate(min(_MAX_BYTES, shutil.disk_usage(STATE).free))
    partial.chmod(0o600)
    run(["mkfs.btrfs", "--quiet", "--metadata", "single", partial])
    partial.rename(DISKS_IMAGE)


def _on_btrfs() -> bool:
    return DISKS_IMAGE.exists()


def _copy(source: Path) -> Path:
    volume = VOLUMES / uuid.uuid4().hex
    if _on_btrfs():
        run(["btrfs", "subvolume", "snapshot", source, volume])
    else:
        run(["cp", "--archive", "--reflink=auto", source, volume])
    return volume


def _sync() -> None:
    run(["sync", "--file-system", DISKS])


def _point(name: Path, volume: Path) -> None:
    partial = DISKS / f".{name.name}.link"
    partial.unlink(missing_ok=True)
    partial.symlink_to(os.path.relpath(volume, name.parent))
    partial.replace(name)


def _collect_garbage() -> None:
    named = {path.resolve() for path in (CURRENT, *SNAPSHOTS.iterdir())}
    for volume in VOLUMES.iterdir():
        if volume.resolve() in named:
            continue
        if _on_btrfs():
            run(["btrfs", "subvolume", "delete", volume])
        else:
            remove_tree(volume)


def _copy_identity(source: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True, mode=0o700)
    files = {path.name for path in source.glob("*") if path.name not in _NOT_IDENTITY}
    for name in files:
        mode = (source / name).stat().st_mode & 0o777
        write_if_changed(target / name, (source / name).read_text(), mode)
    for path in target.iterdir():
        if path.name not in files | _NOT_IDENTITY:
            path.unlink()


def _install_identity() -> None:
    """A restored volume carries its identity until that is in place, also after a crash."""
    identity = CURRENT / _IDENTITY
    if identity.exists():
        for directory in _IDENTITY_DIRECTORIES:
            _copy_identity(identity / directory, STATE / directory)
        SSH.chmod(0o700)
        remove_tree(identity.resolve())


def main() -> int:
    """`python -m lab.disks`, in a mount namespace of its own; prints JSON."""
    parser = argparse.ArgumentParser(prog="python -m lab.disks")
    parser.add_argument("command", choices=["report", "forget", "drop-current"])
    parser.add_argument("name", nargs="?", default="")
    options = parser.parse_args()
    try:
        attach()
        if options.command == "forget":
            forget(options.name)
        elif options.command == "drop-current":
            drop_current()
        print(json.dumps(report() if options.command == "report" else {}))
    except NoSnapshotError as error:
        print(error, file=sys.stderr)
        return NO_SNAPSHOT_STATUS
    except LabError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

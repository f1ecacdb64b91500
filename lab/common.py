"""Paths, errors and small helpers that every part of the lab uses."""

from __future__ import annotations

import json
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypedDict

from plugins.module_utils import process
from plugins.module_utils.atomic import replace_file

Progress = Callable[[str], None]

CHECKOUT = Path(__file__).resolve().parent.parent
STATE = Path(os.environ.get("PRIME_SPARK_LAB_DIR", "/var/lib/prime-spark-lab"))
# Locks, sockets and the cgroup parent are named after this directory: one lab per machine, unless
# the tests of the lab itself point it elsewhere.
RUNTIME = Path(os.environ.get("PRIME_SPARK_LAB_RUN", "/run/prime-spark-lab"))

CACHE = STATE / "cache"
DISKS = STATE / "disks"
DISKS_IMAGE = STATE / "disks.btrfs"
SSH = STATE / "ssh"
# Where Ansible keeps connections to hosts open, by the inventory.
OPEN_CONNECTIONS = SSH / "control"
LOGS = STATE / "logs"
NETNS = Path("/run/netns")  # inside the supervisor's mount namespace
OPERATOR_KEY = SSH / "id_ed25519"
KNOWN_HOSTS = SSH / "known_hosts"

LOCK = RUNTIME / "lock"
CLI_LOCK = RUNTIME / "cli.lock"
OWNER = RUNTIME / "owner.json"
SOCKET = RUNTIME / "control.sock"
MACHINE_BEFORE = RUNTIME / "machine-before.json"
CGROUP_PARENT = RUNTIME.name


class LabError(RuntimeError):
    """Something the operator has to know; the message says what to do about it."""


class Owner(TypedDict):
    """Who runs the lab (owner.json); pids as seen from the machine's own PID namespace."""

    checkout: str
    pid: int
    outer_pid: int
    started: float


def read_owner() -> Owner | None:
    """Return the last recorded owner, living or not."""
    try:
        owner: Owner = json.loads(OWNER.read_text())
    except (FileNotFoundError, ValueError):
        return None
    return owner


def run(argv: process.Argv, *, stdin: str = "", check: bool = True) -> process.Finished:
    """Run a command, capture its output; a failure becomes a LabError that quotes it."""
    try:
        result = process.finish(argv, stdin=stdin)
    except FileNotFoundError as error:
        raise LabError(f"{argv[0]} is not installed: run lab/install-tools") from error
    if check and result.returncode != 0:
        command = " ".join(map(str, argv))
        said = process.said(result)
        raise LabError(f"`{command}` failed with {result.returncode}: {said}")
    return result


def write_if_changed(path: Path, content: str, mode: int = 0o644) -> bool:
    """Write a file atomically when its content differs; never follows a link at `path`."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), encoding="utf-8") as stream:
            same = stream.read() == content
            if same and stat.S_IMODE(os.fstat(stream.fileno()).st_mode) == mode:
                return False
    except (OSError, UnicodeDecodeError):
        pass
    replace_file(path, content, mode, durable=False)
    return True


def mounts_below(path: Path) -> list[str]:
    """Mount points at or below a path, in this mount namespace."""
    prefix = str(path.resolve())
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        target = line.split()[4].encode().decode("unicode_escape")
        if target == prefix or target.startswith(prefix + "/"):
            found.append(target)
    return found


def remove_tree(path: Path) -> None:
    """Delete a directory tree; refuses when anything is mounted in it, never leaves its device."""
    if not path.is_symlink() and not path.exists():
        return
    if path.is_symlink() or not path.is_dir():
        raise LabError(f"{path} is not a directory: not deleting it")
    if mounted := mounts_below(path):
        raise LabError(
            f"not deleting {path}: {mounted[0]} is mounted. Unmount it (`umount {mounted[0]}`) "
            "and try again"
        )
    parent = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        device = os.stat(path.name, dir_fd=parent, follow_symlinks=False).st_dev
        _remove_entry(parent, path.name, device, str(path))
    finally:
        os.close(parent)


def _remove_entry(parent: int, name: str, device: int, shown: str) -> None:
    status = os.stat(name, dir_fd=parent, follow_symlinks=False)
    if status.st_dev != device:
        raise LabError(f"not deleting {shown}: it is on another device, something is mounted there")
    if not stat.S_ISDIR(status.st_mode):
        os.unlink(name, dir_fd=parent)
        return
    directory = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
    try:
        if os.fstat(directory).st_dev != device:
            raise LabError(f"not deleting {shown}: something is mounted there")
        for entry in os.listdir(directory):
            _remove_entry(directory, entry, device, f"{shown}/{entry}")
    finally:
        os.close(directory)
    os.rmdir(name, dir_fd=parent)


def wait_for(condition: Callable[[], bool], seconds: float, interval: float = 0.05) -> bool:
    """Poll a condition until it holds or the time is over; returns whether it held."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(interval)
    return True

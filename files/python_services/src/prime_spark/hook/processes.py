"""Processes of a run: this one's descendants, those with its mark, and those of its unit."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path

# In the environment of everything that a run starts: the directory of the run.
MARK = "PRIME_SPARK_RUN"

_PR_SET_CHILD_SUBREAPER = 36
# Where control groups of version 2 are, also beside those of version 1.
_GROUPS = ("/sys/fs/cgroup", "/sys/fs/cgroup/unified")
_POLL_SECONDS = 0.05
_LAST_SECONDS = 2.0
_KILL_SECONDS = 10.0


def adopt_orphans() -> None:
    """Let what this process's descendants leave behind become its children, not init's."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def descendants() -> list[int]:
    """Return the living processes below this one."""
    parents: dict[int, list[int]] = {}
    for pid in _all():
        with contextlib.suppress(OSError, ValueError):
            # The name may hold anything, also parentheses.
            rest = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
            if rest[0] not in "ZX":
                parents.setdefault(int(rest[1]), []).append(pid)
    found: list[int] = []
    waiting = [os.getpid()]
    while waiting:
        children = parents.get(waiting.pop(), [])
        found += children
        waiting += children
    return found


def marked(directory: Path) -> list[int]:
    """Return the living processes that carry the mark of a run, as far as we may look."""
    mark = f"{MARK}={directory}".encode()
    found = []
    for pid in _all():
        with contextlib.suppress(OSError):
            if mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                found.append(pid)
    return found


def own_group() -> str:
    """Return the control group of this process, as seen from the root of them all."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        if line.startswith("0::"):
            return line.removeprefix("0::")
    return ""


def members(group: str) -> list[int]:
    """Return the processes in a control group, whoever they belong to; none when it is gone."""
    for root in _GROUPS:
        with contextlib.suppress(OSError):
            text = Path(f"{root}{group}/cgroup.procs").read_text()
            return [int(pid) for pid in text.split()]
    return []


def end_descendants(grace: float) -> list[int]:
    """End everything below this process; return what could not be ended.

    First our children alone have `grace` seconds: Ansible then ends its workers by itself. What is
    left is asked, too, and killed after two seconds.
    """
    first = descendants_of_first_order()
    _send(first, signal.SIGTERM)
    _wait(lambda: not set(first) & set(descendants()), grace)
    return end(descendants)


def end(those: Callable[[], list[int]]) -> list[int]:
    """End the processes that `those` returns until it returns none; return what is left."""
    _send(those(), signal.SIGTERM)
    _wait(lambda: not those(), _LAST_SECONDS)
    deadline = time.monotonic() + _KILL_SECONDS
    while (left := those()) and time.monotonic() < deadline:
        _send(left, signal.SIGKILL)
        time.sleep(_POLL_SECONDS)
    return left


def wait_for_end(those: Callable[[], list[int]]) -> list[int]:
    """Wait until `those` returns none, for as long as killing may take; return what is left."""
    _wait(lambda: not those(), _KILL_SECONDS)
    return those()


def descendants_of_first_order() -> list[int]:
    """Return our children."""
    me = str(os.getpid())
    found = []
    for pid in descendants():
        with contextlib.suppress(OSError):
            stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
            if stat.rpartition(")")[2].split()[1] == me:
                found.append(pid)
    return found


def _all() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208


def _send(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def _wait(done: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not done() and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)

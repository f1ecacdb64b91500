"""A cgroup per host, with limits, in every hierarchy this machine has.

All of them lie below one parent (named like the runtime directory), so that "what belongs to the
lab" is one subtree per hierarchy, and removing it removes every trace. On a hybrid machine the
limits are set in the v1 hierarchies while systemd inside the host uses the v2 one; on a pure v2
machine both are the same tree.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from lab.common import CGROUP_PARENT, RUNTIME, LabError
from lab.topology import Host

# systemd's own hierarchy limits nothing, but systemd-nspawn makes cgroups there, too.
_V1_CONTROLLERS = ("memory", "cpu", "cpuacct", "cpuset", "pids", "name=systemd")
_V2_CONTROLLERS = ("cpu", "cpuset", "memory", "pids", "io")
_PERIOD_US = 100_000
# Which controllers were enabled for the machine's root by the lab, to be taken back at `down`.
_ENABLED = RUNTIME / "cgroup-controllers"
SUPERVISOR = "supervisor"


@dataclass(frozen=True)
class Hierarchies:
    """Mount points: the v2 tree and the v1 trees by controller."""

    v2: Path | None
    v1: dict[str, Path] = field(default_factory=dict)

    def roots(self) -> list[Path]:
        """Every distinct hierarchy's root."""
        trees = ([self.v2] if self.v2 else []) + list(self.v1.values())
        return list(dict.fromkeys(trees))


def find(mounts: str | None = None) -> Hierarchies:
    """Read this machine's cgroup mounts (or the given /proc/self/mounts text)."""
    v2: Path | None = None
    v1: dict[str, Path] = {}
    text = Path("/proc/self/mounts").read_text() if mounts is None else mounts
    for line in text.splitlines():
        _, target, kind, options, *_ = line.split()
        if kind == "cgroup2" and v2 is None:
            v2 = Path(target)
        elif kind == "cgroup":
            for controller in set(options.split(",")) & set(_V1_CONTROLLERS):
                v1.setdefault(controller, Path(target))
    return Hierarchies(v2, v1)


def parents() -> list[Path]:
    """The lab's parent cgroup in every hierarchy."""
    return [root / CGROUP_PARENT for root in find().roots()]


def prepare() -> None:
    """Create the parents and the supervisor's own cgroup."""
    trees = find()
    if trees.v2 is None:
        raise LabError(
            "this machine has no cgroup v2 mount: mount one with "
            "`mkdir -p /sys/fs/cgroup/unified && mount -t cgroup2 none /sys/fs/cgroup/unified`"
        )
    _delegate(trees.v2)
    for parent in parents():
        _create(parent)
        if parent.parent == trees.v2:
            _enable(parent)
        _create(parent / SUPERVISOR)


def create_host(host: Host) -> list[Path]:
    """Create a host's cgroups with its limits; return the cgroup.procs files to join."""
    for parent in parents():
        _create(parent / host.name)
    limit(host)
    return procs_files(host.name)


def procs_files(name: str) -> list[Path]:
    """The files that a process writes its pid to, to live in a cgroup of the lab."""
    return [parent / name / "cgroup.procs" for parent in parents()]


def limit(host: Host) -> None:
    """Set a host's limits where the kernel offers the controller."""
    trees = find()
    cpus = min(host.cpus, float(os.cpu_count() or 1))
    quota = str(int(cpus * _PERIOD_US))
    values: list[tuple[str, str, str]] = [
        ("memory", "memory.limit_in_bytes", str(host.memory)),
        ("cpu", "cpu.cfs_period_us", str(_PERIOD_US)),
        ("cpu", "cpu.cfs_quota_us", quota),
        # Half the weight of the machine's own processes: the controller stays responsive.
        ("cpu", "cpu.shares", "512"),
        ("pids", "pids.max", str(host.pids)),
    ]
    for controller, name, value in values:
        if controller in trees.v1:
            _write(trees.v1[controller] / CGROUP_PARENT / host.name / name, value)
    if trees.v2 is not None:
        group = trees.v2 / CGROUP_PARENT / host.name
        _write(group / "memory.max", str(host.memory))
        _write(group / "cpu.max", f"{quota} {_PERIOD_US}")
        _write(group / "cpu.weight", "50")
        _write(group / "pids.max", str(host.pids))


def limits(name: str) -> dict[str, int | None]:
    """A host's limits as the kernel states them: memory (bytes), cpu_quota (us), pids."""
    trees = find()

    def read(controller: str, v1_name: str, v2_name: str) -> int | None:
        root = trees.v1.get(controller)
        candidates = [root / CGROUP_PARENT / name / v1_name] if root else []
        if trees.v2 is not None:
            candidates.append(trees.v2 / CGROUP_PARENT / name / v2_name)
        for path in candidates:
            try:
                return int(path.read_text().split()[0])
            except (OSError, ValueError, IndexError):
                continue
        return None

    return {
        "memory": read("memory", "memory.limit_in_bytes", "memory.max"),
        "cpu_quota": read("cpu", "cpu.cfs_quota_us", "cpu.max"),
        "pids": read("pids", "pids.max", "pids.max"),
    }


def memory_used(name: str) -> int | None:
    """Bytes that a host uses, page cache included."""
    trees = find()
    root = trees.v1.get("memory")
    candidates = [root / CGROUP_PARENT / name / "memory.usage_in_bytes"] if root else []
    if trees.v2 is not None:
        candidates.append(trees.v2 / CGROUP_PARENT / name / "memory.current")
    for path in candidates:
        try:
            return int(path.read_text())
        except (OSError, ValueError):
            continue
    return None


def kill(name: str, seconds: float = 10) -> None:
    """SIGKILL everything in one of the lab's cgroups (and below), wait until it is empty."""
    _kill_trees([parent / name for parent in parents()], seconds)


def remove(name: str) -> None:
    """Remove one of the lab's cgroups in every hierarchy."""
    for parent in parents():
        _remove_tree(parent / name)


def remove_all() -> None:
    """Kill what is left in the lab's cgroups and remove them all."""
    _kill_trees(parents(), seconds=10)
    for parent in parents():
        _remove_tree(parent)
    trees = find()
    if trees.v2 is not None and _ENABLED.exists():
        for controller in _ENABLED.read_text().split():
            _write(trees.v2 / "cgroup.subtree_control", f"-{controller}")
        _ENABLED.unlink()


def leftovers() -> list[Path]:
    """Parent cgroups that exist."""
    return [parent for parent in parents() if parent.exists()]


def _delegate(root: Path) -> None:
    """Make the controllers available below the root; remember which ones that changed."""
    before = set((root / "cgroup.subtree_control").read_text().split())
    _enable(root)
    after = set((root / "cgroup.subtree_control").read_text().split())
    if added := after - before:
        _ENABLED.write_text(" ".join(sorted(added)))


def _enable(group: Path) -> None:
    available = set((group / "cgroup.controllers").read_text().split())
    for controller in _V2_CONTROLLERS:
        if controller in available:
            _write(group / "cgroup.subtree_control", f"+{controller}")


def _create(group: Path) -> None:
    group.mkdir(exist_ok=True)
    # A v1 cpuset takes no process before it has CPUs and memory nodes.
    for name in ("cpuset.cpus", "cpuset.mems"):
        path = group / name
        if (group / "cpuset.sched_load_balance").exists() and not path.read_text().strip():
            path.write_text((group.parent / name).read_text())


def _write(path: Path, value: str) -> bool:
    """Write a control file where it exists; a kernel that refuses a limit costs only the limit."""
    try:
        with path.open("r+") as stream:
            stream.write(value)
    except OSError:
        return False
    return True


def _descend(group: Path) -> Iterator[Path]:
    """A cgroup and its descendants, deepest first."""
    for directory, _, _ in os.walk(group, topdown=False):
        yield Path(directory)


def _members(groups: list[Path]) -> set[int]:
    pids: set[int] = set()
    for top in groups:
        for group in _descend(top):
            try:
                pids.update(map(int, (group / "cgroup.procs").read_text().split()))
            except OSError:
                continue
    # 0 stands for a process outside of our PID namespace.
    return pids - {0, os.getpid()}


def _kill_trees(groups: list[Path], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while pids := _members(groups):
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        if time.monotonic() > deadline:
            raise LabError(f"processes {sorted(pids)} in {groups[0]} do not die")
        time.sleep(0.05)


def _remove_tree(top: Path) -> None:
    deadline = time.monotonic() + 10
    while top.exists():
        for group in _descend(top):
            try:
                group.rmdir()
            except FileNotFoundError:
                continue
            except OSError as error:
                if time.monotonic() > deadline:
                    raise LabError(f"cannot remove cgroup {group}: {error.strerror}") from error
        if top.exists():
            time.sleep(0.05)

"""What the lab's fleet costs while nobody asks anything of it.

Waits until the fleet is quiet, counts for a while, and prints a table: host, unit or container,
CPU (share of one core), process starts per minute, memory; then a sum for each host and, last, one
line: ``cores=… control_pc_1=… process_starts_per_second=…``. Nothing is run on the hosts: they are
cgroups of this machine, and everything is read from outside. Needs root.

  CPU       `cpu.stat` of the hosts' cgroups, before and after. A unit that came or went meanwhile
            (a timer's, say) has lost its own counter by then; what such units used is in the host's
            sum and in the row "units that came and went".
  starts    fork events of the kernel's process connector, without threads; each belongs to the
            cgroup that the new process is in when it is looked at, or its parent's if it is gone.
            The start of a container's health check counts where it was forked: runc in
            containerd.service, the command itself in the container.
  memory    the sum of the processes' PSS: a shared page counts in equal parts for who shares it.
  quiet     root is logged in to no host, and two minutes in a row differ by less than a tenth.
            Runs keep their connections open for two minutes, which counts as being logged in.

The lab's intervals are shorter than production's. To measure with production's:

  python -m tools.bench_idle --intervals production    writes a file of extra variables
  ansible-playbook site.yml -e @FILE                   the lab gets production's intervals
  make bench-idle
  ansible-playbook site.yml                            the lab's own again
"""

from __future__ import annotations

import argparse
import json
import os
import re
import socket
import struct
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lab import cgroups
from lab.common import CGROUP_PARENT, STATE
from lab.topology import HOSTS

REPOSITORY = Path(__file__).resolve().parent.parent
# What of the lab's variables is a duration, by its name, and by its value in the role.
DURATION = re.compile(r"_(interval|timeout|seconds|delay|schedule)(_|$)")
CAME_AND_WENT = "units that came and went"
# linux/connector.h, linux/cn_proc.h, linux/netlink.h
NETLINK_CONNECTOR, CN_IDX_PROC, CN_VAL_PROC = 11, 1, 1
PROC_CN_MCAST_LISTEN, PROC_CN_MCAST_IGNORE, PROC_EVENT_FORK = 1, 2, 1
NLMSG_DONE = 3
SO_RCVBUFFORCE = 33


def parent() -> Path:
    """The cgroup of all hosts, in the v2 hierarchy."""
    v2 = cgroups.find().v2
    if v2 is None or not (v2 / CGROUP_PARENT).is_dir():
        raise SystemExit("the lab does not run: make lab-up")
    return v2 / CGROUP_PARENT


def cpu_seconds(group: Path) -> float:
    """CPU time of a cgroup and everything that ever was below it; 0 when it is gone."""
    try:
        fields = dict(line.split() for line in (group / "cpu.stat").read_text().splitlines())
    except OSError:
        return 0.0
    return int(fields["usage_usec"]) / 1e6


def pids(group: Path) -> list[int]:
    """Processes of a cgroup and of those below it."""
    found = []
    for path in [group, *(p for p in group.rglob("*") if p.is_dir())]:
        try:
            found += [int(pid) for pid in (path / "cgroup.procs").read_text().split()]
        except OSError:
            continue
    return [pid for pid in found if pid > 0]


def memory(group: Path) -> int:
    """PSS of the processes, in bytes."""
    total = 0
    for pid in pids(group):
        try:
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except OSError:
            continue
        total += sum(int(n) * 1024 for n in re.findall(r"^Pss: +(\d+) kB", rollup, re.MULTILINE))
    return total


def unit_of(below: str) -> str | None:
    """The unit that a cgroup, named below its host's, belongs to; None for a slice."""
    parts = below.strip("/").split("/")
    if parts[0] == "supervisor":
        return "systemd-nspawn"
    if "user.slice" in parts:
        return "logins" if len(parts) > 2 else None
    return next((p for p in parts if p.endswith((".service", ".scope"))), None)


def units(host: str) -> dict[str, Path]:
    """Units of a host to their cgroups."""
    base = parent() / host
    found: dict[str, Path] = {}
    for path in sorted(p for p in base.rglob("*") if p.is_dir()):
        name = unit_of(str(path.relative_to(base)))
        if name is not None:
            found.setdefault(name, path)
    return found


def container_names(host: str) -> dict[str, str]:
    """`docker-….scope` to the container's name, out of Docker's own files on the host."""
    started = pids(parent() / host / "payload" / "init.scope")
    if not started:
        return {}
    root = Path(f"/proc/{started[0]}/root/var/lib/docker/containers")
    names = {}
    for path in root.glob("*/config.v2.json"):
        try:
            names[f"docker-{path.parent.name}.scope"] = str(json.loads(path.read_text())["Name"])
        except (OSError, ValueError, KeyError):
            continue
    return {scope: name.lstrip("/") for scope, name in names.items()}


def logged_in() -> list[str]:
    """Hosts that root is logged in to, as runs and tests are; sshfs is a login of another user."""
    return [h for h in HOSTS if any((parent() / h).rglob("user-0.slice/session-*.scope"))]


@dataclass
class Sample:
    """CPU seconds up to now: of each host, and of its units."""

    time: float
    hosts: dict[str, float]
    units: dict[str, dict[str, float]]


def take() -> Sample:
    return Sample(
        time.monotonic(),
        {host: cpu_seconds(parent() / host) for host in HOSTS},
        {host: {u: cpu_seconds(path) for u, path in units(host).items()} for host in HOSTS},
    )


def cores(before: Sample, after: Sample) -> float:
    used = sum(after.hosts.values()) - sum(before.hosts.values())
    return used / (after.time - before.time)


def wait_quiet(limit: float) -> None:
    deadline = time.monotonic() + limit
    last, seen = take(), 0.0
    while True:
        time.sleep(60)
        now = take()
        used, here = cores(last, now), logged_in()
        print(f"waiting: {used:.3f} cores{', logins on ' + ', '.join(here) if here else ''}")
        if not here and seen and abs(used - seen) < 0.1 * seen:
            return
        if time.monotonic() > deadline:
            raise SystemExit(f"the fleet was not quiet within {limit:.0f} s")
        last, seen = now, 0.0 if here else used


class Starts(threading.Thread):
    """Counts new processes of the hosts' units, by host and unit."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.count: Counter[tuple[str, str]] = Counter()
        self.problem = "none was reported: that takes root and the machine's own PID namespace"
        self._prefix = f"/{CGROUP_PARENT}/"
        self._known: dict[int, str] = {}
        self._done = threading.Event()
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, NETLINK_CONNECTOR)
        self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 24)
        self._socket.bind((0, CN_IDX_PROC))
        self._socket.settimeout(0.5)
        self._say(PROC_CN_MCAST_LISTEN)

    def _say(self, what: int) -> None:
        operation = struct.pack("=I", what)
        body = struct.pack("=IIIIHH", CN_IDX_PROC, CN_VAL_PROC, 0, 0, len(operation), 0)
        body += operation
        header = struct.pack("=IHHII", 16 + len(body), NLMSG_DONE, 0, 0, os.getpid())
        self._socket.send(header + body)

    def run(self) -> None:
        while not self._done.is_set():
            try:
                message = self._socket.recv(4096)
            except TimeoutError:
                continue
            except OSError:  # ENOBUFS
                self.problem = "some were lost: the machine was too busy"
                continue
            # nlmsghdr (16), cn_msg (20), then what, cpu, timestamp (16) and the pids.
            if struct.unpack_from("=I", message, 36)[0] != PROC_EVENT_FORK:
                continue
            _, old, pid, group = struct.unpack_from("=IIII", message, 52)
            if pid == group:
                self._note(old, pid)

    def _note(self, old: int, pid: int) -> None:
        if not self._known:
            self.problem = ""
        where = self._cgroup(pid) or self._known.get(old) or self._cgroup(old)
        self._known[pid] = where
        if where.startswith(self._prefix):
            host, _, below = where.removeprefix(self._prefix).partition("/")
            self.count[host, unit_of(below) or below] += 1

    @staticmethod
    def _cgroup(pid: int) -> str:
        try:
            with open(f"/proc/{pid}/cgroup", encoding="utf-8") as stream:
                return next((line[3:-1] for line in stream if line.startswith("0::")), "")
        except OSError:
            return ""

    def end(self) -> None:
        self._done.set()
        self.join()
        self._say(PROC_CN_MCAST_IGNORE)
        self._socket.close()


def table(before: Sample, after: Sample, starts: Counter[tuple[str, str]]) -> list[str]:
    """The lines to print."""
    seconds = after.time - before.time
    lines = [f"{'host':14} {'unit or container':40} {'CPU':>7} {'starts/min':>11} {'MiB':>6}"]
    sums = []
    for host in HOSTS:
        names, paths = container_names(host), units(host)
        used = {
            unit: after.units[host][unit] - before.units[host][unit]
            for unit in before.units[host].keys() & after.units[host].keys()
        }
        total = after.hosts[host] - before.hosts[host]
        used[CAME_AND_WENT] = max(0.0, total - sum(used.values()))
        started = {unit: n for (name, unit), n in starts.items() if name == host}
        sizes = {unit: memory(path) / 2**20 for unit, path in paths.items()}
        for unit in sorted(used.keys() | started.keys(), key=lambda u: -used.get(u, 0.0)):
            share, rate = used.get(unit, 0.0) / seconds, started.get(unit, 0) * 60 / seconds
            # What rounds to nothing is in the sums.
            if share >= 0.0005 or rate >= 0.5:
                cpu = f"{share:7.4f}" if unit in used else f"{'':7}"
                size = f"{sizes[unit]:6.0f}" if unit in sizes else ""
                lines.append(f"{host:14} {names.get(unit, unit):40} {cpu} {rate:11.1f} {size}")
        sums.append(
            f"{host:14} {'all':40} {total / seconds:7.4f} "
            f"{sum(started.values()) * 60 / seconds:11.1f} {sum(sizes.values()):6.0f}"
        )
    return lines + sums


def production_intervals() -> dict[str, Any]:
    """What the lab's inventory shortens, with production's values (else the roles')."""
    read: dict[str, dict[str, Any]] = {}
    for name in ("lab", "production"):
        path = REPOSITORY / f"inventories/{name}/group_vars/all/main.yml"
        read[name] = yaml.safe_load(path.read_text())
    roles: dict[str, Any] = {}
    for path in REPOSITORY.glob("roles/*/defaults/main.yml"):
        roles |= yaml.safe_load(path.read_text()) or {}
    return {
        name: read["production"].get(name, roles[name])
        for name in read["lab"]
        if name in roles and DURATION.search(name)
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60, help="how long to count (60)")
    parser.add_argument("--quiet-within", type=float, default=900, metavar="SECONDS")
    parser.add_argument("--no-wait", action="store_true", help="count at once, quiet or not")
    parser.add_argument(
        "--intervals", choices=["production"], help="only write the extra variables, see above"
    )
    options = parser.parse_args()
    if options.intervals:
        path = STATE / "production-intervals.yml"
        path.write_text(yaml.safe_dump(production_intervals()))
        print(f"{path.read_text()}\nansible-playbook site.yml -e @{path}\nmake bench-idle")
        return 0
    if not options.no_wait:
        wait_quiet(options.quiet_within)
    starts = Starts()
    before = take()
    starts.start()
    time.sleep(options.seconds)
    after = take()
    starts.end()
    if any(after.hosts[host] < before.hosts[host] for host in HOSTS):
        raise SystemExit("a host was started again while its time was counted: count again")
    print("\n".join(table(before, after, starts.count)))
    if starts.problem:
        print(f"process starts are not complete: {starts.problem}", file=sys.stderr)
    pi = HOSTS["control-pc-1"].name
    seconds = after.time - before.time
    print(
        f"cores={cores(before, after):.3f} "
        f"control_pc_1={(after.hosts[pi] - before.hosts[pi]) / seconds:.3f} "
        f"process_starts_per_second={starts.count.total() / seconds:.1f}"
    )
    return int(bool(starts.problem))


if __name__ == "__main__":
    sys.exit(main())

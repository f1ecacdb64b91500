"""Who listens on the ports of a host: our services and containers, and those of others."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import sys
from typing import Any, NamedTuple

from ansible_collections.prime_spark.fleet.plugins.module_utils.past import ADOPT
from ansible_collections.prime_spark.fleet.plugins.module_utils.process import attempt

LISTEN = "0A"
# Docker listens for containers, ours and others alike.
CONTAINERS = "/docker.service"
# Where roles of ours keep compose projects.
STACK = "/opt/prime-spark/stack/"


class Container(NamedTuple):
    """A running container: its name, its compose project, the project's directory, host ports."""

    name: str
    project: str
    directory: str
    ports: set[int]


def containers() -> list[Container]:
    """The containers that run; none where Docker does not answer."""
    labels = [f'{{{{.Label "com.docker.compose.{name}"}}}}' for name in LABELS]
    shown = "\t".join(["{{.Names}}", *labels, "{{.Ports}}"])
    done = attempt(["docker", "ps", "--format", shown], timeout=20)
    rows = (line.split("\t") for line in done.stdout.splitlines())
    return [Container(row[0], row[1], row[2], published(row[3])) for row in rows if len(row) == 4]


LABELS = ("project", "project.working_dir")


def published(ports: str) -> set[int]:
    """The host's ports in what ``docker ps`` shows as ``0.0.0.0:80-81->80-81/tcp, 9/tcp``."""
    found: set[int] = set()
    for first, last in re.findall(r":(\d+)(?:-(\d+))?->", ports):
        found.update(range(int(first), int(last or first) + 1))
    return found


def listeners(table: str, numbers: set[int]) -> list[tuple[str, int, str]]:
    """Address, port and inode of the sockets of /proc/net/tcp or tcp6 that listen on a port."""
    found = []
    for line in table.splitlines()[1:]:
        fields = line.split()
        if len(fields) < 10 or fields[3] != LISTEN:
            continue
        raw, _, port = fields[1].rpartition(":")
        if int(port, 16) not in numbers:
            continue
        # Words of 32 bits in the machine's byte order.
        packed = b"".join(
            int(raw[i : i + 8], 16).to_bytes(4, sys.byteorder) for i in range(0, len(raw), 8)
        )
        found.append((str(ipaddress.ip_address(packed)), int(port, 16), fields[9]))
    return found


def descriptors(pid: str) -> set[str]:
    """What the descriptors of a process stand for; empty where it ended meanwhile."""
    found = set()
    with contextlib.suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            # A busy program closes files while they are looked through; that hides no other.
            with contextlib.suppress(OSError):
                found.add(os.readlink(f"/proc/{pid}/fd/{name}"))
    return found


def holders(inodes: set[str]) -> dict[str, tuple[str, str]]:
    """Inode to the command and the cgroup of the process that holds the socket."""
    found: dict[str, tuple[str, str]] = {}
    wanted = {f"socket:[{inode}]": inode for inode in inodes}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        held = wanted.keys() & descriptors(pid)
        if not held:
            continue
        try:
            with open(f"/proc/{pid}/comm", encoding="utf-8") as stream:
                command = stream.read().strip()
            with open(f"/proc/{pid}/cgroup", encoding="utf-8") as stream:
                cgroup = stream.read()
        except OSError:
            continue  # It ended meanwhile.
        found.update((wanted[link], (f"{command} ({pid})", cgroup)) for link in held)
    return found


def listening(numbers: set[int]) -> list[tuple[str, int, str, str]]:
    """Address, port, command and cgroup of whoever listens on one of the ports."""
    # A unit that restarts takes its socket away between the two looks; a socket that nobody
    # holds at the second look as well is the kernel's own, like the one of an NFS server.
    for last in (False, True):
        sockets = []
        for table in ("/proc/net/tcp", "/proc/net/tcp6"):
            # A kernel without IPv6 has one table only.
            with contextlib.suppress(OSError), open(table, encoding="ascii") as stream:
                sockets += listeners(stream.read(), numbers)
        held = holders({inode for _, _, inode in sockets})
        if last or all(inode in held for _, _, inode in sockets):
            break
    return [
        (address, port, *held.get(inode, ("a program", ""))) for address, port, inode in sockets
    ]


def conflict(wanted: str, taken: str) -> bool:
    """Whether a socket on ``taken`` keeps another from listening on ``wanted``."""
    addresses = (ipaddress.ip_address(wanted), ipaddress.ip_address(taken))
    return addresses[0] == addresses[1] or any(a.is_unspecified for a in addresses)


def port_problems(ports: list[dict[str, Any]]) -> list[str]:
    """Ports that somebody else listens on; a service of ours may hold its own."""
    if not ports:
        return []
    taken = listening({entry["port"] for entry in ports})
    behind = containers() if any(CONTAINERS in cgroup for *_, cgroup in taken) else []
    found = []
    for entry in ports:
        for address, port, command, cgroup in taken:
            if port != entry["port"] or not conflict(entry["address"], address):
                continue
            stop = "stop it"
            if CONTAINERS in cgroup:
                holder = next((each for each in behind if port in each.ports), None)
                # Who publishes it cannot be said where Docker does not answer.
                if holder is None or is_ours(holder, entry["projects"]):
                    continue
                command = f"the container {holder.name}"
                stop = f"stop it (`{ADOPT} -e stop={holder.project or holder.name}`)"
            elif any(f"/{unit}" in cgroup for unit in entry["units"]):
                continue
            found.append(
                f"{command} listens on {address}:{port}, which {entry['role']} needs; "
                f"{stop} or set {entry['variable']}"
            )
    return found


def is_ours(container: Container, projects: list[str]) -> bool:
    """Whether a container is of one of these projects, as a role of ours brings it up."""
    return container.project in projects and container.directory == STACK + container.project

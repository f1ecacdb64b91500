"""What the lab must not change about the machine, as one comparable snapshot.

`up` takes it before it starts anything; the tests take another and compare.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lab import cgroups
from lab.common import MACHINE_BEFORE, run

Snapshot = dict[str, Any]

# Counters and clocks: they change by themselves.
_VOLATILE = re.compile(
    r"random/|ns_last_pid|/pty/nr$|nr_open_pipes|file-nr|inode-(nr|state)|dentry-state|aio-nr"
    r"|nf_conntrack_count|/quota/|sched_domain|epoll|hung_task_detect_count|/perf_"
    r"|timer_stats|max_map_count_used|/stat_refresh|/compact_memory|route/flush|keys/"
)
_PARTS = ("net", "kernel", "vm", "fs")


def sysctls() -> dict[str, str]:
    """Every readable sysctl that does not change by itself."""
    values = {}
    for part in _PARTS:
        for directory, _, names in os.walk(f"/proc/sys/{part}"):
            for name in names:
                path = f"{directory}/{name}"
                key = path.removeprefix("/proc/sys/")
                if not _VOLATILE.search("/" + key):
                    try:
                        values[key] = Path(path).read_text(errors="replace").strip()
                    except OSError:
                        continue
    return values


def _json(*argv: str) -> Any:
    return json.loads(run(argv).stdout or "[]")


def _network() -> dict[str, Any]:
    links = [
        {key: link.get(key) for key in ("ifname", "link_type", "operstate", "master", "mtu")}
        for link in _json("ip", "-json", "link", "show")
    ]
    addresses = [
        (link["ifname"], entry["local"], entry["prefixlen"])
        for link in _json("ip", "-json", "address", "show")
        for entry in link["addr_info"]
    ]
    routes = {
        family: sorted(
            # Without what ages.
            " ".join(re.sub(r"expires \S+", "", line).split())
            for line in run(["ip", family, "route", "show", "table", "all"]).stdout.splitlines()
        )
        for family in ("-4", "-6")
    }
    rules = {family: run(["ip", family, "rule"]).stdout.splitlines() for family in ("-4", "-6")}
    return {"links": links, "addresses": addresses, "routes": routes, "rules": rules}


def _firewall() -> dict[str, str]:
    rules = {}
    if shutil.which("nft"):
        rules["nft"] = run(["nft", "--stateless", "list", "ruleset"], check=False).stdout
    for family in ("ip", "ip6"):
        names = Path(f"/proc/net/{family}_tables_names")
        rules[family] = names.read_text() if names.exists() else ""
    return rules


def _cgroups() -> dict[str, Any]:
    trees = cgroups.find()
    mounts = [
        " ".join(line.split()[1:4])
        for line in Path("/proc/self/mounts").read_text().splitlines()
        if line.split()[2] in ("cgroup", "cgroup2")
    ]
    groups = {
        str(root): sorted(
            entry.name
            for entry in root.iterdir()
            if entry.is_dir() and not entry.name.startswith("prime-spark-lab")
        )
        for root in trees.roots()
    }
    control = ""
    if trees.v2 is not None:
        control = (trees.v2 / "cgroup.subtree_control").read_text()
    return {"mounts": mounts, "groups": groups, "subtree_control": control}


def snapshot() -> Snapshot:
    """Take a snapshot of the machine (of the namespaces that the caller is in)."""
    state = {
        "sysctls": sysctls(),
        "network": _network(),
        "firewall": _firewall(),
        "cgroups": _cgroups(),
        "modules": _modules(),
        "namespaces": sorted(p.name for p in Path("/run/netns").glob("*")),
    }
    # Compared after a trip through JSON: tuples and lists are the same then.
    result: Snapshot = json.loads(json.dumps(state))
    return result


def _modules() -> list[str]:
    path = Path("/proc/modules")
    lines = path.read_text().splitlines() if path.exists() else []
    return sorted(line.split()[0] for line in lines)


def save() -> None:
    """Record the state before the lab starts."""
    MACHINE_BEFORE.write_text(json.dumps(snapshot(), indent=1) + "\n")


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Describe what differs; empty when nothing does.

    Sysctls and modules may appear (the kernel loads a module on demand, which brings its sysctls),
    but none may change or go.
    """
    found = []
    for key, value in before["sysctls"].items():
        now = after["sysctls"].get(key)
        if now != value:
            found.append(f"sysctl {key}: {value!r} became {now!r}")
    for module in set(before["modules"]) - set(after["modules"]):
        found.append(f"module {module} is gone")
    for part in ("network", "firewall", "cgroups"):
        for key, value in before[part].items():
            if after[part].get(key) != value:
                found.append(f"{part} {key}: {value!r} became {after[part].get(key)!r}")
    if before["namespaces"] != after["namespaces"]:
        found.append(f"namespaces: {before['namespaces']} became {after['namespaces']}")
    return found

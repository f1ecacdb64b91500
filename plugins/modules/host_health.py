#!/usr/bin/python
"""Ansible module: what of a host's expected state is true right now."""

from __future__ import annotations

DOCUMENTATION = r"""
module: host_health
short_description: Compare units, containers, mounts and VPN of a host with what should be
description:
  - Reads only. Every look has a time limit, so a dead NAS or daemon is reported, not waited for.
  - Looks again for O(wait_seconds) while something is wrong, and never fails for it.
options:
  units:
    description: Systemd units that have to be active.
    type: list
    elements: str
    default: []
  projects:
    description: Compose projects whose containers have to run, healthy.
    type: list
    elements: str
    default: []
  mounts:
    description: Mount points that have to answer with their share mounted.
    type: list
    elements: str
    default: []
  vpn:
    description: Whether the host is a VPN peer, whose guard has to have its rules loaded.
    type: bool
    default: false
  vpn_peers:
    description: Names of the peers that should have a fresh handshake.
    type: list
    elements: str
    default: []
  database:
    description: Database of the project C(timescale) on this host, to ask for the newest telemetry.
    type: str
    default: ""
  devices:
    description: Devices whose newest row in O(database) has to be fresh.
    type: list
    elements: str
    default: []
  fresh_seconds:
    description: Age that is waited for; the newest row of each of O(devices) is to be younger.
    type: int
    default: 70
  prometheus:
    description: The Prometheus of this host, and what it has to scrape.
    type: dict
    suboptions:
      url: {description: Where it listens., type: str, required: true}
      username: {description: As whom to ask., type: str, required: true}
      password_file: {description: File with the password., type: path, required: true}
      targets:
        description: Targets that have to be up.
        type: list
        elements: dict
        required: true
        suboptions:
          job: {description: Name of the job., type: str, required: true}
          host: {description: The target's label C(host)., type: str, required: true}
          address: {description: Address and port., type: str, required: true}
          service: {description: The target's label C(service)., type: str, default: ""}
  wait_seconds:
    description: How long to look again while something is wrong.
    type: int
    default: 0
"""

RETURN = r"""
problems:
  description: One sentence for each thing that is not as it should be.
  type: list
  elements: str
  returned: always
settled:
  description: Those of RV(problems) that another look in the next seconds would not find gone.
  type: list
  elements: str
  returned: always
deferred:
  description: What comes back by itself once another machine does, which is none of ours to repair.
  type: list
  elements: str
  returned: always
seen:
  description: Units, containers and mounts that are well, and the age of the VPN handshakes.
  type: dict
  returned: always
telemetry:
  description: Seconds since the newest row of each device; null where nobody was asked or the
    database did not answer.
  type: dict
  returned: always
left_out:
  description: What this host leaves out, and why.
  type: list
  elements: str
  returned: always
"""

import base64
import json
import os
import socket
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.prime_spark.fleet.plugins.module_utils.process import attempt

LIMIT = 15
# WireGuard makes a new handshake every two minutes while a peer talks.
HANDSHAKE_LIMIT = 180
STATUS_FILE = "/run/prime-spark/vpn.json"
GUARD_TABLE, GUARD_UNIT = "prime_spark_vpn_guard", "prime-spark-vpn-guard"
NEWEST = """SELECT coalesce(json_object_agg(device_id, age), '{}') FROM
(SELECT device_id, extract(epoch FROM now() - max(time)) AS age
FROM device_metrics WHERE time > now() - interval '1 day' GROUP BY 1) newest"""


def output(argv: list[str]) -> tuple[int, str]:
    """Exit status and output."""
    done = attempt(argv, timeout=LIMIT)
    return done.returncode, (done.stdout or done.stderr).strip()


def unit_problems(units: list[str]) -> list[str]:
    if not units:
        return []
    _, said = output(["systemctl", "is-active", "--", *units])
    states = said.splitlines()
    if len(states) != len(units):
        return [f"units cannot be asked for: {said or 'no answer'}"]
    return [
        f"unit {unit} is {state}, expected active"
        for unit, state in zip(units, states, strict=True)
        if state != "active"
    ]


def container_state(projects: list[str]) -> tuple[int, list[str], list[str]]:
    """Number of well containers, problems, and what Docker cannot enforce here."""
    if not projects:
        return 0, [], []
    well, problems = 0, []
    label = '{{.Label "com.docker.compose.project"}}'
    status, said = output(
        ["docker", "ps", "--all", "--filter", "label=com.docker.compose.project"]
        + ["--format", f"{label}\t{{{{.Names}}}}\t{{{{.State}}}}\t{{{{.Status}}}}"]
    )
    rows = [line.split("\t") for line in said.splitlines()] if status == 0 else []
    for project in projects:
        lines = [row[1:] for row in rows if row[0] == project]
        if not lines:
            why = said if status != 0 else "not started"
            problems.append(f"project {project} has no container ({why})")
        for name, state, text in lines:
            if state == "running" and "unhealthy" not in text and "starting" not in text:
                well += 1
            else:
                problems.append(f"container {name} is {text}, expected running and healthy")
    left_out = []
    status, said = output(["docker", "info", "--format", "{{.CPUCfsQuota}} {{.MemoryLimit}}"])
    if status == 0:
        quota, memory = said.split()[:2]
        if quota != "true":
            left_out.append("containers' CPU limits: the kernel offers no CFS quota to Docker")
        if memory != "true":
            left_out.append("containers' memory limits: the host's cgroup has no memory controller")
    return well, problems, left_out


def unit_source(path: str) -> tuple[str, int]:
    """Server and TCP port of the share that the mount unit of a path names; "" where none does."""
    unit = output(["systemd-escape", "--path", "--suffix=mount", path])[1]
    said = output(["systemctl", "cat", unit])[1]
    settings = dict(line.split("=", 1) for line in said.splitlines() if "=" in line)
    return share_server(settings.get("What", ""), settings.get("Type", ""))


def share_server(what: str, kind: str) -> tuple[str, int]:
    """Server and TCP port of `user@server:/share`, `server:/share` or `//server/share`."""
    port = {"fuse.sshfs": 22, "nfs4": 2049, "cifs": 445}.get(kind, 0)
    if kind == "cifs":
        return what.removeprefix("//").split("/")[0], port
    return what.rpartition("@")[2].rpartition(":/")[0], port


def silent(server: str, port: int) -> bool:
    """Whether a server does not answer; one that refuses to talk does."""
    try:
        socket.create_connection((server, port), timeout=3).close()
    except ConnectionRefusedError:
        return False
    except OSError:
        return True
    return False


def mount_problems(mounts: list[str]) -> tuple[list[str], list[str], list[str]]:
    """The shares that are there, problems, and the shares that wait for their server."""
    well, problems, deferred = [], [], []
    for path in mounts:
        # Looking inside triggers the automount; in a process of its own, since it may hang.
        status, said = output(["ls", path])
        if status != 0:
            server, port = unit_source(path)
            if server and port and silent(server, port):
                deferred.append(f"{path} is away while {server} does not answer")
            else:
                problems.append(f"{path} does not answer: {said}")
            continue
        status, said = output(
            ["findmnt", "--noheadings", "--output", "FSTYPE", "--mountpoint", path]
        )
        kinds = [kind for kind in said.split() if kind != "autofs"]
        if status != 0 or not kinds:
            problems.append(f"{path} has no share mounted")
        else:
            well.append(f"{path} ({kinds[-1].removeprefix('fuse.')})")
    return well, problems, deferred


def vpn_state(peers: list[str]) -> tuple[dict[str, int], list[str]]:
    """Seconds since the handshake of each peer, and problems."""
    try:
        with open(STATUS_FILE, encoding="utf-8") as stream:
            status = json.load(stream)
        age = time.time() - os.stat(STATUS_FILE).st_mtime
    except (OSError, ValueError) as error:
        return {}, [f"no VPN status: {error}"]
    problems = [f"the VPN status is {age:.0f} s old: its timer does not run"] if age > 90 else []
    known = {peer["name"]: int(peer["latest_handshake"] or 0) for peer in status["peers"]}
    ages = {}
    for name in peers:
        if name not in known:
            problems.append(f"{name} is no VPN peer of this host")
        elif not known[name]:
            problems.append(f"no VPN handshake with {name} yet")
        else:
            ages[name] = max(0, int(time.time() - known[name]))
            if ages[name] > HANDSHAKE_LIMIT:
                problems.append(f"last VPN handshake with {name} {ages[name]} s ago")
    return ages, problems


def guard_problems() -> list[str]:
    """Whether the rules are loaded: whoever flushes all rules leaves the guard's unit active."""
    status, said = output(["/usr/sbin/nft", "--terse", "list", "table", "ip", GUARD_TABLE])
    if status == 0:
        return []
    why = said.partition("\n")[0]
    return [f"the rules of the VPN's guard are not loaded: restart {GUARD_UNIT} ({why})"]


def newest_rows(database: str) -> tuple[dict[str, float] | None, str]:
    """Seconds since the newest telemetry row of each device, or why that cannot be told."""
    argv = ["docker", "compose", "--project-name", "timescale", "exec", "-T", "--user", "postgres"]
    argv += ["timescale", "psql", "--no-psqlrc", "--tuples-only", "--no-align"]
    status, said = output([*argv, "--command", NEWEST, database])
    if status != 0:
        return None, said
    return dict(json.loads(said)), ""


def scraped(prometheus: dict[str, Any]) -> dict[tuple[str, str], tuple[str, str]]:
    """Job and address of every target that Prometheus has, with its health and last error."""
    with open(prometheus["password_file"], encoding="utf-8") as stream:
        login = f"{prometheus['username']}:{stream.read().strip()}"
    request = urllib.request.Request(
        f"{prometheus['url']}/api/v1/targets?state=active",
        headers={"Authorization": f"Basic {base64.b64encode(login.encode()).decode()}"},
    )
    with urllib.request.build_opener().open(request, timeout=LIMIT) as answer:
        targets = json.load(answer)["data"]["activeTargets"]
    return {
        (target["labels"]["job"], target["labels"]["instance"]): (
            target["health"],
            target["lastError"],
        )
        for target in targets
    }


def target_problems(prometheus: dict[str, Any] | None) -> list[str]:
    """What Prometheus should see and does not."""
    if not prometheus:
        return []
    try:
        seen = scraped(prometheus)
    except (OSError, ValueError, KeyError) as error:
        return [f"Prometheus does not tell its targets: {error}"]
    problems = []
    for target in prometheus["targets"]:
        health, why = seen.get((target["job"], target["address"]), ("not among its targets", ""))
        if health != "up":
            what = f"{target['service'] or target['job']} of {target['host']}"
            state = {"unknown": "not scraped yet"}.get(health, health)
            detail = f" ({why})" if why else ""
            problems.append(
                f"Prometheus: {what} at {target['address']} is {state}{detail}, expected up"
            )
    return problems


def look(params: dict[str, Any]) -> dict[str, Any]:
    """What is true right now, as the module returns it."""
    # Beside each other: most of it is waiting for other programs.
    with ThreadPoolExecutor(max_workers=7) as pool:
        units = pool.submit(unit_problems, params["units"])
        states = pool.submit(container_state, params["projects"])
        shares = pool.submit(mount_problems, params["mounts"])
        container = pool.submit(output, ["systemd-detect-virt", "--container"])
        rows = pool.submit(newest_rows, params["database"]) if params["database"] else None
        targets = pool.submit(target_problems, params["prometheus"])
        guard = pool.submit(guard_problems) if params["vpn"] else None
        ages, silent_peers = vpn_state(params["vpn_peers"]) if params["vpn"] else ({}, [])
    containers, trouble, left_out = states.result()
    # The look has tried to mount; each takes as long as a dead server's timeouts.
    mounts, settled, deferred = shares.result()
    problems = [*units.result(), *trouble, *settled, *silent_peers, *targets.result()]
    problems += guard.result() if guard else []
    seen: dict[str, Any] = {
        "units": len(params["units"]) - len(units.result()),
        "containers": containers,
        "mounts": mounts,
        "handshakes": ages,
    }
    status, kind = container.result()
    if status == 0:
        left_out.append(f"kernel settings other than net.*: the host is a container ({kind})")
    telemetry, why = rows.result() if rows else (None, "")
    if why:
        problems.append(f"the database does not tell the newest telemetry: {why}")
    return {
        "problems": problems,
        "settled": settled,
        "deferred": deferred,
        "seen": seen,
        "telemetry": telemetry,
        "left_out": left_out,
    }


def may_improve(found: dict[str, Any], params: dict[str, Any]) -> bool:
    """Whether a later look may find less wrong.

    Right after a start, a container's health check or a VPN handshake still runs, and a sample is
    on its way into the database.
    """
    if set(found["problems"]) - set(found["settled"]):
        return True
    if not params["database"]:
        return False
    ages = found["telemetry"]
    return any(
        ages.get(name, float("inf")) >= params["fresh_seconds"] for name in params["devices"]
    )


def main() -> None:
    target = {
        "job": {"type": "str", "required": True},
        "host": {"type": "str", "required": True},
        "address": {"type": "str", "required": True},
        "service": {"type": "str", "default": ""},
    }
    prometheus = {
        "url": {"type": "str", "required": True},
        "username": {"type": "str", "required": True},
        "password_file": {"type": "path", "required": True, "no_log": False},
        "targets": {"type": "list", "elements": "dict", "required": True, "options": target},
    }
    module = AnsibleModule(
        argument_spec={
            "units": {"type": "list", "elements": "str", "default": []},
            "projects": {"type": "list", "elements": "str", "default": []},
            "mounts": {"type": "list", "elements": "str", "default": []},
            "vpn": {"type": "bool", "default": False},
            "vpn_peers": {"type": "list", "elements": "str", "default": []},
            "database": {"type": "str", "default": ""},
            "devices": {"type": "list", "elements": "str", "default": []},
            "fresh_seconds": {"type": "int", "default": 70},
            "prometheus": {"type": "dict", "options": prometheus},
            "wait_seconds": {"type": "int", "default": 0},
        },
        supports_check_mode=True,
    )
    params: dict[str, Any] = module.params
    deadline = time.monotonic() + params["wait_seconds"]
    found = look(params)
    while may_improve(found, params) and time.monotonic() < deadline:
        time.sleep(1)
        found = look(params)
    module.exit_json(changed=False, **found)


if __name__ == "__main__":
    main()

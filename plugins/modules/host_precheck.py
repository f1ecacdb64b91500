#!/usr/bin/python
"""Ansible module: a host's facts, and what about it would make a run fail half way."""

from __future__ import annotations

DOCUMENTATION = r"""
module: host_precheck
short_description: Read the facts that roles use and refuse a host that cannot be provisioned
description:
  - Reads only, and never a mount, so that a dead NAS holds up nothing.
  - Use it through the action plugin of the same name, which compares the clocks and turns the
    problems into a failure.
options:
  systems:
    description: Supported distributions, name and major version.
    type: list
    elements: str
    required: true
  architectures:
    description: Supported architectures.
    type: list
    elements: str
    required: true
  without_compose:
    description: Supported distributions whose packages lack Docker's compose plugin; empty where
      the host runs no containers, or where the inventory says where the plugin is to be had.
    type: list
    elements: str
    default: []
  python:
    description: Lowest version of Python.
    type: str
    required: true
  memory_mb:
    description: Memory that the host must have.
    type: int
    required: true
  disk_mb:
    description: Space that must be free below each of O(paths).
    type: int
    required: true
  paths:
    description: Directories that are written to; the nearest that exists is looked at.
    type: list
    elements: path
    default: [/etc, /opt, /var/lib]
  roles:
    description: Roles of this host whose manifests are compared with it.
    type: list
    elements: str
    default: []
  ports:
    description: TCP ports that services of ours will listen on.
    type: list
    elements: dict
    default: []
    suboptions:
      port: {description: Number., type: int, required: true}
      address: {description: Address to listen on., type: str, required: true}
      role: {description: Role that needs it., type: str, required: true}
      variable: {description: Variable of the role that sets it., type: str, required: true}
      units:
        description: Units whose processes may hold it.
        type: list
        elements: str
        default: []
      projects:
        description: Compose projects whose containers may.
        type: list
        elements: str
        default: []
  wanted:
    description: What the roles of this host want of it, as C(validate_inventory) returns it. What
      the host had before and what stands in the way of that is refused, see M(host_adopt).
    type: dict
    default: {}
"""

RETURN = r"""
problems:
  description: One sentence for each reason not to provision this host.
  type: list
  elements: str
  returned: always
drift:
  description: By role, the manifest's stamp, nonce, seal and digest, and what differs from it.
    Without a manifest a role is not in it.
  type: dict
  returned: always
recorded:
  description: Names of the roles that left records on this host, sorted. Nothing else is looked at,
    so what was not written by a role of this repository is never named.
  type: list
  elements: str
  returned: always
time:
  description: The host's clock, in seconds since 1970.
  type: float
  returned: always
synchronized:
  description: Whether the system says that its clock is kept in sync; null where it cannot say.
  type: bool
  returned: always
"""

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.facts import ansible_collector
from ansible.module_utils.facts.namespace import PrefixFactNamespace
from ansible.module_utils.facts.system.distribution import DistributionFactCollector
from ansible.module_utils.facts.system.platform import PlatformFactCollector
from ansible.module_utils.facts.system.python import PythonFactCollector
from ansible.module_utils.facts.system.service_mgr import ServiceMgrFactCollector
from ansible.module_utils.facts.virtual.linux import LinuxVirtualCollector
from ansible_collections.prime_spark.fleet.plugins.module_utils.listeners import port_problems
from ansible_collections.prime_spark.fleet.plugins.module_utils.past import findings, installed
from ansible_collections.prime_spark.fleet.plugins.module_utils.process import attempt
from ansible_collections.prime_spark.fleet.plugins.module_utils.state import examine, recorded_roles

# Not mounts and not hardware: a dead NAS would hang them. By name, since all collectors together
# would be sent to every host at the start of every run.
COLLECTORS = [
    PlatformFactCollector,
    DistributionFactCollector,
    PythonFactCollector,
    LinuxVirtualCollector,
    ServiceMgrFactCollector,
]


def collect(module: AnsibleModule) -> dict[str, Any]:
    """The facts as ansible.builtin.setup would return them, without a second run."""
    collector = ansible_collector.get_ansible_collector(
        all_collector_classes=COLLECTORS,
        namespace=PrefixFactNamespace(namespace_name="ansible", prefix="ansible_"),
        gather_subset=["all"],
        gather_timeout=10,
        minimal_gather_subset=frozenset(),
    )
    return dict(collector.collect(module=module))


def system_problems(facts: dict[str, Any], params: dict[str, Any]) -> list[str]:
    """Distribution, architecture, init and Python against what is supported."""
    found = []
    system = (
        f"{facts.get('ansible_distribution')} {facts.get('ansible_distribution_major_version')}"
    )
    if system not in params["systems"]:
        found.append(f"it runs {system}, expected one of {', '.join(params['systems'])}")
    elif system in params["without_compose"]:
        found.append(
            f"{system} has no package of Docker's compose plugin: set docker_compose_plugin_url "
            "and docker_compose_plugin_sha256 (a release of docker/compose for its architecture)"
        )
    machine = str(facts.get("ansible_architecture"))
    if machine not in params["architectures"]:
        expected = ", ".join(params["architectures"])
        found.append(f"its architecture is {machine}, expected one of {expected}")
    init = facts.get("ansible_service_mgr")
    if init != "systemd":
        found.append(f"its services are managed by {init}, expected systemd")
    lowest = tuple(int(part) for part in params["python"].split("."))
    if sys.version_info[:2] < lowest:
        seen = ".".join(str(part) for part in sys.version_info[:3])
        found.append(f"its {sys.executable} is {seen}, expected {params['python']} or newer")
    return found


def memory_problem(wanted: int, meminfo: str) -> list[str]:
    """Compare /proc/meminfo with the memory wanted, in MB; firmware takes its part of a module."""
    fields = dict(line.split(":", 1) for line in meminfo.splitlines() if ":" in line)
    total = int(fields["MemTotal"].split()[0]) // 1024
    if total >= wanted:
        return []
    return [f"it has {total} MB of memory, expected at least {wanted} MB for its roles"]


def disk_problems(paths: list[str], wanted: int) -> list[str]:
    """Free space in MB and the right to write, once for each file system."""
    found, seen = [], set()
    for path in paths:
        while not os.path.isdir(path):
            path = os.path.dirname(path)
        status = os.statvfs(path)
        device = os.stat(path).st_dev
        if device in seen:
            continue
        seen.add(device)
        free = status.f_bavail * status.f_frsize // 2**20
        if status.f_flag & os.ST_RDONLY:
            found.append(f"{path} is mounted read-only, expected a file system to write to")
        elif free < wanted:
            found.append(
                f"{free} MB are free below {path}, expected at least {wanted} MB; "
                "`journalctl --vacuum-size=100M` and `apt-get clean` free some"
            )
    return found


def synchronized() -> bool | None:
    """What the system says of its clock."""
    argv = ["timedatectl", "show", "--property", "NTPSynchronized", "--value"]
    done = attempt(argv, timeout=5)
    return {"yes": True, "no": False}.get(done.stdout.strip())


def host_problems(params: dict[str, Any], facts: dict[str, Any]) -> list[str]:
    """Every reason not to provision this host."""
    if params["without_compose"] and "docker-ce" in installed(["docker-ce"]):
        params = {**params, "without_compose": []}  # Its source has a plugin for every system.
    problems = system_problems(facts, params)
    with open("/proc/meminfo", encoding="ascii") as stream:
        problems += memory_problem(params["memory_mb"], stream.read())
    problems += disk_problems(params["paths"], params["disk_mb"])
    past = findings(params["wanted"], params["roles"], recorded_roles())
    problems += [finding.problem for finding in past]
    return problems + port_problems(params["ports"])


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "systems": {"type": "list", "elements": "str", "required": True},
            "without_compose": {"type": "list", "elements": "str", "default": []},
            "architectures": {"type": "list", "elements": "str", "required": True},
            "python": {"type": "str", "required": True},
            "memory_mb": {"type": "int", "required": True},
            "disk_mb": {"type": "int", "required": True},
            "paths": {
                "type": "list",
                "elements": "path",
                "default": ["/etc", "/opt", "/var/lib"],
            },
            "roles": {"type": "list", "elements": "str", "default": []},
            "ports": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "port": {"type": "int", "required": True},
                    "address": {"type": "str", "required": True},
                    "role": {"type": "str", "required": True},
                    "variable": {"type": "str", "required": True},
                    "units": {"type": "list", "elements": "str", "default": []},
                    "projects": {"type": "list", "elements": "str", "default": []},
                },
            },
            "wanted": {"type": "dict", "default": {}},
        },
        supports_check_mode=True,
    )
    params: dict[str, Any] = module.params
    now = time.time()
    # Debian keeps these out of the PATH of an ordinary user.
    os.environ["PATH"] = f"{os.environ.get('PATH', '/usr/bin:/bin')}:/usr/sbin:/sbin"
    with ThreadPoolExecutor(max_workers=1) as pool:
        examined = pool.submit(examine, params["roles"])
        facts = collect(module)
        problems = host_problems(params, facts)
        drift = examined.result()
    module.exit_json(
        changed=False,
        ansible_facts=facts,
        problems=problems,
        drift=drift,
        recorded=recorded_roles(),
        time=now,
        synchronized=synchronized(),
    )


if __name__ == "__main__":
    main()

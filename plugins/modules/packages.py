#!/usr/bin/python
"""Ansible module: Debian packages, with a check mode that is right on a bare host, too."""

from __future__ import annotations

DOCUMENTATION = r"""
module: packages
short_description: Install Debian packages that are missing
description:
  - Asks dpkg what is missing; only then are package lists fetched (when they are older than a day)
    and the packages installed, without what they merely recommend.
  - Needs nothing on the host. M(ansible.builtin.apt) needs python3-apt, which a bare host lacks, so
    that its check mode fails there; and it reads apt's whole cache to find that nothing is to do.
  - In check mode, packages that are missing are reported as a change. Whether they can be had is
    simulated, but only with fresh package lists, which check mode does not fetch.
  - Never removes a package. What apt would do is read first, in check mode, too; where that takes
    another package away, the module fails and names it.
  - A dpkg run that was interrupted earlier is completed first.
extends_documentation_fragment: [prime_spark.fleet.tree.role]
options:
  name:
    description: Names of the packages.
    type: list
    elements: str
    required: true
  instead:
    description: Packages of another source that do the same. Where the first of them is installed,
      these are wanted instead of O(name), with what they are missing from the same source.
    type: list
    elements: str
    default: []
  mask:
    description: Units of these packages that must never run, since another unit of ours does. They
      are masked before the installation, which would start them.
    type: list
    elements: str
    default: []
  lists_max_age:
    description: Age in seconds from which package lists are fetched again.
    type: int
    default: 86400
"""

EXAMPLES = r"""
- name: Install WireGuard
  packages:
    name: [wireguard-tools, nftables]
"""

RETURN = r"""
wanted:
  description: The packages that were asked for, those of O(instead) where these do the same.
  type: list
  elements: str
  returned: always
missing:
  description: The packages that were missing.
  type: list
  elements: str
  returned: always
changes:
  description: One sentence for each change.
  type: list
  elements: str
  returned: always
"""

import glob
import os
import re
import time

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.prime_spark.fleet.plugins.module_utils.notes import OWNER_ARGUMENTS, note
from ansible_collections.prime_spark.fleet.plugins.module_utils.process import finish

LISTS = "/var/lib/apt/lists"
UNITS = "/etc/systemd/system"
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "DEBIAN_FRONTEND": "noninteractive",
    "LC_ALL": "C.UTF-8",
}
# Another apt (unattended-upgrades, say) holds its lock for a while.
LOCK_SECONDS = 120


class PackageError(Exception):
    """Packages cannot be installed; the message says why."""


def run(argv: list[str]) -> tuple[int, str]:
    """Exit status and everything that was said."""
    # What is set for proxies has to reach apt.
    kept = {k: v for k, v in os.environ.items() if k.lower().endswith("_proxy")}
    done = finish(argv, env={**kept, **ENVIRONMENT})
    return done.returncode, (done.stdout + done.stderr).strip()


def missing_of(names: list[str], status: str) -> list[str]:
    """The names without an installed package in ``dpkg-query``'s lines ``NAME STATUS``."""
    installed = {
        line.split()[0]
        for line in status.splitlines()
        if line.split()[1:] == ["install", "ok", "installed"]
        or line.split()[1:] == ["hold", "ok", "installed"]
    }
    return [name for name in names if name not in installed]


def lists_age() -> float | None:
    """Seconds since the package lists were fetched, None where there are none."""
    if not glob.glob(f"{LISTS}/*Packages*"):
        return None
    return max(0.0, time.time() - os.stat(LISTS).st_mtime)


def fetch_lists() -> None:
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        status, said = run(["apt-get", "update", "--quiet", "--error-on=any"])
        if status == 0:
            # apt leaves the time as it is when nothing was new.
            os.utime(LISTS)
            return
        if time.monotonic() >= deadline:
            raise PackageError(f"the package lists cannot be fetched: {said[-2000:]}")
        time.sleep(3)


def install_command(names: list[str], *options: str) -> list[str]:
    return [
        "apt-get",
        "install",
        "--yes",
        "--quiet",
        "--no-install-recommends",
        *options,
        # A configuration file that somebody changed stays as it is.
        "--option=Dpkg::Options::=--force-confdef",
        "--option=Dpkg::Options::=--force-confold",
        f"--option=DPkg::Lock::Timeout={LOCK_SECONDS}",
        *names,
    ]


def refuse_removals(names: list[str], plan: str) -> None:
    """Raises where apt's simulation removes a package that is there."""
    if removed := re.findall(r"^Remv (\S+)", plan, re.MULTILINE):
        raise PackageError(
            f"installing {', '.join(names)} would remove {', '.join(removed)}: nothing was "
            "installed; remove what is not needed, or install from where that came"
        )


def simulate(names: list[str]) -> tuple[int, str]:
    """Let apt plan the installation; a plan that removes packages is refused."""
    status, said = run(install_command(names, "--simulate"))
    refuse_removals(names, said)
    return status, said


def install(names: list[str], max_age: int) -> None:
    if os.path.isdir("/var/lib/dpkg/updates") and os.listdir("/var/lib/dpkg/updates"):
        run(["dpkg", "--configure", "-a", "--force-confdef", "--force-confold"])
    age = lists_age()
    fresh = age is not None and age < max_age
    if not fresh:
        fetch_lists()
    simulate(names)
    status, said = run(install_command(names, "--no-remove"))
    if status != 0 and fresh:
        # The mirror may have moved on since the lists were fetched.
        fetch_lists()
        simulate(names)
        status, said = run(install_command(names, "--no-remove"))
    if status != 0:
        raise PackageError(f"installing {', '.join(names)} failed: {said[-3000:]}")


def unmasked(units: list[str], directory: str = UNITS) -> list[str]:
    """The units that are not masked."""
    return [unit for unit in units if os.path.realpath(f"{directory}/{unit}") != "/dev/null"]


def mask(units: list[str]) -> None:
    """Stop units that run and keep them from being started; they need not exist yet."""
    for unit in units:
        status, said = run(["systemctl", "mask", "--now", "--quiet", unit])
        if status != 0:
            raise PackageError(f"{unit} cannot be masked: {said}")


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "list", "elements": "str", "required": True},
            "instead": {"type": "list", "elements": "str", "default": []},
            "mask": {"type": "list", "elements": "str", "default": []},
            "lists_max_age": {"type": "int", "default": 86400},
            **OWNER_ARGUMENTS,
        },
        supports_check_mode=True,
    )
    names: list[str] = module.params["name"]
    max_age: int = module.params["lists_max_age"]
    other: list[str] = module.params["instead"]
    query = ["dpkg-query", "--show", "--showformat=${Package} ${Status}\n"]
    _, status = run([*query, *names, *other])
    if other and not missing_of(other[:1], status):
        names = other
    missing = missing_of(names, status)
    masking = unmasked(module.params["mask"])
    changes = [f"mask {unit}" for unit in masking] + [f"install {name}" for name in missing]
    try:
        if masking and not module.check_mode:
            mask(masking)
        if missing and not module.check_mode:
            install(missing, max_age)
        elif missing:
            age = lists_age()
            if age is None or age >= max_age:
                changes.append("deferred: package lists are fetched first, then it is known more")
            else:
                code, said = simulate(missing)
                if code != 0:
                    raise PackageError(f"{', '.join(missing)} cannot be installed: {said[-2000:]}")
        if not module.check_mode:
            note(module.params, "package", dict.fromkeys(names))
            note(module.params, "mask", dict.fromkeys(module.params["mask"]))
    except (PackageError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(
        changed=bool(missing or masking), wanted=names, missing=missing, changes=changes
    )


if __name__ == "__main__":
    main()

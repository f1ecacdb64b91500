"""Which hosts a run touches: what Ansible makes of playbook, limit and inventory."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile

from prime_spark.hook.rules import Job
from prime_spark.hook.settings import AnsibleConfig

# Half of what stops a service that hangs.
_SECONDS = 60.0
_REASON_CHARS = 300


class HostsError(Exception):
    """The hosts of a run cannot be told; the message says why."""


def hosts_of(ansible: AnsibleConfig, job: Job) -> frozenset[str]:
    """Return the hosts of all plays; raises HostsError, also when there are none."""
    with tempfile.TemporaryDirectory(prefix="prime-spark-hook-") as home:
        env = {
            "PATH": f"{ansible.programs}:/usr/local/bin:/usr/bin:/bin",
            "HOME": home,
            "LANG": "C.UTF-8",
            "ANSIBLE_NOCOLOR": "1",
            **ansible.environment,
        }
        inventories = [part for path in ansible.inventories() for part in ("--inventory", path)]
        program = os.path.join(ansible.programs, "ansible-playbook")  # noqa: PTH118
        try:
            done = subprocess.run(  # noqa: S603
                [program, "--list-hosts", *inventories, *job.arguments()],
                cwd=ansible.checkout,
                env=env,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise HostsError(f"cannot list the hosts: no answer within {_SECONDS:g} s") from None
        except OSError as error:
            raise HostsError(f"cannot list the hosts: {error}") from None
    if done.returncode != 0:
        text = " ".join(done.stderr.split())[-_REASON_CHARS:]
        raise HostsError(f"cannot list the hosts: {text}")
    found = frozenset(_listed(done.stdout))
    if not found:
        raise HostsError("no host matches")
    return found


def _listed(text: str) -> list[str]:
    """Return the indented lines after each `hosts (N):`."""
    found: list[str] = []
    left = 0
    for line in text.splitlines():
        if heading := re.fullmatch(r" {4}hosts \((\d+)\):", line):
            left = int(heading[1])
        elif left:
            found.append(line.strip())
            left -= 1
    return found

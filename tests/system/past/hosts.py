"""The hosts with a past: what they are, how one talks to them, and runs on them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from lab import common
from tests.system.fleet.recap import recap_of

STATE = common.STATE.with_name("prime-spark-lab-past")
RUNTIME = common.RUNTIME.with_name("prime-spark-lab-past")
# The hub stands in the cloud, as where the home has no public address.
HOSTS: dict[str, dict[str, Any]] = {
    "primecore1": {
        "ansible_host": "198.51.100.11",
        "wireguard_address": "10.90.8.11",
        "wireguard_role": "hub",
        "wireguard_endpoint": "198.51.100.11:51820",
    },
    "primecore4": {"ansible_host": "198.51.100.14", "wireguard_address": "10.90.8.14"},
    "spark-agent-1": {
        "ansible_host": "10.90.1.11",
        "wireguard_address": "10.90.8.3",
        # Whose sudo asks for a password.
        "ansible_user": "pi",
    },
}
PASSWORD = "a-password-of-sudo"  # of a host that lives for minutes


def environment() -> dict[str, str]:
    """By which everything finds these hosts, and not those of the real lab."""
    place = {"PRIME_SPARK_LAB_DIR": str(STATE), "PRIME_SPARK_LAB_RUN": str(RUNTIME)}
    return {**os.environ, **place}


class Run(NamedTuple):
    """What a run of a playbook printed, its exit status, and how many tasks changed something."""

    output: str
    status: int
    changed: int

    def refusals(self, host: str) -> list[str]:
        """What was refused of a host, a sentence each."""
        lines = re.findall(rf"REFUSED  {host}: (.*)", self.output)
        return lines or re.findall(rf'"{host}: (.*) Nothing on it was changed', self.output)


class Fleet:
    """The hosts and their inventory."""

    def __init__(self, inventory: Path) -> None:
        self.inventory = inventory
        self.become = inventory.parent / "become"
        self.become.write_text(PASSWORD)

    def play(self, playbook: str, *arguments: str) -> Run:
        """Run a playbook to its end, whatever that is; with the password for sudo."""
        program = str(Path(sys.executable).with_name("ansible-playbook"))
        argv = [program, "-i", str(self.inventory), playbook]
        argv += ["--become-password-file", str(self.become), *arguments]
        shown = {"ANSIBLE_NOCOLOR": "1", "ANSIBLE_CALLBACK_RESULT_FORMAT": "json"}
        done = subprocess.run(
            argv,
            cwd=common.CHECKOUT,
            env={**environment(), **shown},
            capture_output=True,
            text=True,
            timeout=600,
        )
        changed = sum(counters["changed"] for counters in recap_of(done.stdout).values())
        return Run(done.stdout + done.stderr, done.returncode, changed)

    def site(self, *arguments: str) -> Run:
        return self.play("site.yml", *arguments)

    def shell(self, host: str, script: str, seconds: float = 600) -> str:
        """Run a script as root on a host; what it printed."""
        done = subprocess.run(
            ["ssh", "-F", STATE / "ssh" / "config", host, "bash -eu -o pipefail -s"],
            input=script,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=seconds,
        )
        assert done.returncode == 0, f"{host}: {script}\n{done.stdout}{done.stderr}"
        return done.stdout

    def prepare(self, host: str, pasts: Path) -> None:
        """Give a host its past."""
        common_part = (pasts / "functions.sh").read_text()
        variables = f"PASSWORD={PASSWORD}\n"
        self.shell(host, variables + common_part + (pasts / f"{host}.sh").read_text())

"""Runs of site.yml on the lab, as an operator types them."""

from __future__ import annotations

import os
import subprocess
import time
from typing import NamedTuple

from tests.system.fleet import fleet
from tests.system.fleet.recap import recap_of


class Run(NamedTuple):
    """What a run printed, its exit status, its seconds, and the counters of its recap by host."""

    output: str
    status: int
    seconds: float
    recap: dict[str, dict[str, int]]

    @property
    def changed(self) -> int:
        """How many tasks changed something, over all hosts."""
        return sum(counters["changed"] for counters in self.recap.values())


def command(*arguments: str) -> list[str]:
    """The command line of a run."""
    return [str(fleet.BIN / "ansible-playbook"), "site.yml", *arguments]


def environment() -> dict[str, str]:
    """Its environment: results on one line each."""
    return {**os.environ, "ANSIBLE_NOCOLOR": "1", "ANSIBLE_CALLBACK_RESULT_FORMAT": "json"}


def run(*arguments: str, seconds: float = 600) -> Run:
    """Run site.yml to its end, whatever that is."""
    started = time.monotonic()
    done = subprocess.run(
        command(*arguments),
        cwd=fleet.ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=seconds,
    )
    seconds_taken = time.monotonic() - started
    output = f"{done.stdout}{done.stderr}"
    return Run(output, done.returncode, seconds_taken, recap_of(done.stdout))

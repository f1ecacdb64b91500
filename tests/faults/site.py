"""Runs of site.yml on the lab, as an operator types them."""

from __future__ import annotations

import os
import re
import subprocess
import time
from typing import NamedTuple

from tests.fleet import fleet


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
    recap = {}
    for line in done.stdout.partition("PLAY RECAP")[2].splitlines()[1:]:
        name, colon, counts = line.partition(" : ")
        if colon and counts.lstrip().startswith("ok="):
            recap[name.strip()] = {k: int(v) for k, v in re.findall(r"(\w+)=(\d+)", counts)}
    return Run(f"{done.stdout}{done.stderr}", done.returncode, time.monotonic() - started, recap)

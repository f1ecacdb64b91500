"""What the last lines of a run of ansible-playbook say."""

from __future__ import annotations

import re


def recap_of(output: str) -> dict[str, dict[str, int]]:
    """Host to its counters. What ended the run is said again below them and is no host's."""
    lines = re.findall(r"^(\S+) +: (ok=.*)$", output.partition("PLAY RECAP")[2], re.MULTILINE)
    return {name: {k: int(v) for k, v in re.findall(r"(\w+)=(\d+)", c)} for name, c in lines}

#!/usr/bin/env python3
"""Measure a run of site.yml over a fleet that should need nothing.

Prints what the run printed while it goes and ends with one line:
``changed=… seconds=… tasks=… module_runs=…``. A module run is one command sent to a host: that is
what a run costs. Exits with the run's status; any arguments go to ansible-playbook.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
# -vvv names every command sent to a host.
COMMAND = [str(Path(sys.executable).parent / "ansible-playbook"), "site.yml", "-vvv"]


def main() -> int:
    if sys.argv[1:2] in (["-h"], ["--help"]):
        print(__doc__)
        return 0
    started = time.monotonic()
    tasks = runs = changed = 0
    with subprocess.Popen(
        [*COMMAND, *sys.argv[1:]],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if re.match(r"<[^>]+> SSH: EXEC ", line):
                runs += 1
            elif line.startswith("TASK ["):
                tasks += 1
                print(f"{time.monotonic() - started:6.1f} s  {line.split(' *')[0]}", flush=True)
            elif recap := re.search(r" ok=\d+ +changed=(\d+) ", line):
                changed += int(recap.group(1))
                print(line, end="")
            elif line.startswith(("fatal:", "changed:", "[ERROR]", "failed:")):
                print(line, end="")
    seconds = time.monotonic() - started
    print(f"changed={changed} seconds={seconds:.1f} tasks={tasks} module_runs={runs}")
    return process.returncode


if __name__ == "__main__":
    sys.exit(main())

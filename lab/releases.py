"""Prepare the Python services' releases that the hosts will want: `python -m lab.releases`.

site.yml builds what is missing while its hosts wait; `up` has it done while images are built.
Needs the virtual environment: the builder is the action plugin that site.yml uses.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

from lab import bases
from lab.common import CHECKOUT, LOGS, Progress
from lab.topology import SUITES

SERVICES = CHECKOUT / "files/python_services"
LOG = LOGS / "releases.log"
_PYTHON = CHECKOUT / ".venv/bin/python"


def start() -> subprocess.Popen[bytes] | None:
    """Start in the background; None in a checkout without services or virtual environment.

    Called when the bases are there.
    """
    if not _PYTHON.exists() or not SERVICES.exists():
        return None
    with LOG.open("wb") as log:
        return subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "nice", str(_PYTHON), "-m", "lab.releases"],
            cwd=CHECKOUT,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def finish(process: subprocess.Popen[bytes] | None, progress: Progress) -> None:
    """Wait for it. A failure is only told: the run of site.yml meets it again and explains it."""
    if process is not None and process.wait() != 0:
        lines = LOG.read_text(errors="replace").splitlines()
        progress(f"releases: not prepared, see {LOG}: {lines[-1] if lines else ''}")


def targets() -> list[str]:
    """What the hosts' Debian releases run, such as x86_64-py313."""
    found = []
    for suite in SUITES:
        python = os.readlink(bases.BASES / suite / "usr/bin/python3").removeprefix("python")
        found.append(f"{platform.machine()}-py{python.replace('.', '')}")
    return found


def build(source: Path) -> None:
    """Build the missing releases of a source tree into the cache that site.yml uses."""
    from ansible.plugins.loader import init_plugin_loader
    from ansible.utils.display import Display

    init_plugin_loader([str(CHECKOUT / "collections")])
    from ansible_collections.prime_spark.fleet.plugins.action import python_release

    class Builder(python_release.ActionModule):
        """The plugin outside of a task."""

        def __init__(self) -> None:
            self._display = Display()

    for target in targets():
        lock = source / "locks" / f"{target}.txt"
        release = python_release.release_hash(str(source), str(lock), target)
        Builder().build(str(source), str(lock), target, release)


if __name__ == "__main__":
    build(SERVICES)
    sys.exit(0)

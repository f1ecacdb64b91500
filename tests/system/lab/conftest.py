"""Fixtures for the tests of the lab itself: root and a running lab (`make lab-up`)."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lab import common
from lab.cli import ask, living_owner
from lab.topology import HOSTS

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def owner() -> common.Owner:
    """The living lab's record."""
    if os.geteuid() != 0:
        pytest.fail("these tests need root")
    found = living_owner()
    if found is None:
        pytest.fail("these tests need a running lab: `make lab-up`")
    return found


@pytest.fixture(scope="session")
def rows(owner: common.Owner) -> dict[str, Any]:
    """The supervisor's report on every host, all of which have to run."""
    report: dict[str, Any] = ask("status")
    off = [name for name in HOSTS if report[name]["leader"] is None]
    if off:
        pytest.fail(f"hosts that do not run: {', '.join(off)}; `make lab-up`")
    return report


@pytest.fixture(scope="session")
def netns(owner: common.Owner) -> Run:
    """Run a command in one of the lab's network namespaces."""

    def run(namespace: str, *argv: str) -> subprocess.CompletedProcess[str]:
        path = f"/proc/{owner['pid']}/root/run/netns/{namespace}"
        return subprocess.run(
            ["nsenter", f"--net={path}", "--", *argv], capture_output=True, text=True
        )

    return run


@pytest.fixture(scope="session")
def leaders(owner: common.Owner, rows: dict[str, Any]) -> dict[str, Path]:
    """For each host, /proc/<its PID 1> as the supervisor sees it."""
    proc = Path(f"/proc/{owner['pid']}/root/proc")
    return {name: proc / str(rows[name]["leader"]) for name in HOSTS}


@pytest.fixture(scope="session")
def on_host(owner: common.Owner, rows: dict[str, Any]) -> Run:
    """Run a command on a host, past its network."""

    def run(host: str, *argv: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["nsenter", "-t", str(owner["pid"]), "--mount", "--pid", "--"]
            + ["nsenter", "-t", str(rows[host]["leader"]), "--all", "--root", "--", *argv],
            capture_output=True,
            text=True,
        )

    return run


@pytest.fixture(scope="session")
def before(owner: common.Owner) -> dict[str, Any]:
    """The machine as it was before the lab started."""
    snapshot: dict[str, Any] = json.loads(common.MACHINE_BEFORE.read_text())
    return snapshot

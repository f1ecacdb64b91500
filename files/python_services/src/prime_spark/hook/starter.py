"""How the process of a run is started so that it is no child of the service, and stopped."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from prime_spark.hook.directory import Order, RunDirectory
from prime_spark.hook.processes import MARK

_START_SECONDS = 30.0
# What a unit has on top of what the run's process takes for itself, before systemd acts.
_SPARE_SECONDS = 30


class StartError(Exception):
    """The process of a run could not be started."""


class Starter(Protocol):
    """Starts and stops the process of a run. Both return at once and may be repeated."""

    def start(self, directory: RunDirectory, order: Order) -> None:
        """Start the process; raises StartError."""

    def stop(self, directory: RunDirectory, order: Order) -> None:
        """Ask the process to end its run."""


class ProcessStarter:
    """A session of its own. Nothing but the mark and the descent holds its processes together."""

    def start(self, directory: RunDirectory, order: Order) -> None:  # noqa: ARG002
        """Start the process in the background."""
        with (directory.path / "log").open("ab") as log:
            # It forks: what stays is no child of ours, and no zombie.
            _call(["setsid", "--fork", *run_one(directory)], _environment(directory), log.fileno())

    def stop(self, directory: RunDirectory, order: Order) -> None:  # noqa: ARG002
        """Send SIGTERM."""
        if pid := directory.process():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)


class SystemdStarter:
    """A transient unit: its control group holds whatever the run starts."""

    def start(self, directory: RunDirectory, order: Order) -> None:
        """Start the unit; one that is there already is as good."""
        try:
            _call(systemd_run(directory, order), dict(os.environ))
        except StartError:
            if directory.status() == "unclaimed":
                raise

    def stop(self, directory: RunDirectory, order: Order) -> None:  # noqa: ARG002
        """Stop the unit: SIGTERM to the run's process, SIGKILL to everything after a while."""
        _call(["systemctl", "stop", "--no-block", unit(order)], dict(os.environ))


def unit(order: Order) -> str:
    """Return the name of a run's unit."""
    return f"prime-spark-run-{order.run}.service"


def systemd_run(directory: RunDirectory, order: Order) -> list[str]:
    """Return the command that starts a run's unit."""
    longest = int(order.grace_seconds) + _SPARE_SECONDS
    properties = {
        "Description": f"Prime Spark run {order.run}: {order.job.rule}",
        "KillMode": "mixed",
        "TimeoutStopSec": longest,
        "RuntimeMaxSec": int(order.job.timeout_seconds) + longest,
        "UMask": "0077",
    }
    command = ["systemd-run", "--quiet", "--collect", f"--unit={unit(order)}"]
    command += [f"--property={name}={value}" for name, value in properties.items()]
    command += [f"--setenv={name}={value}" for name, value in _environment(directory).items()]
    return [*command, "--", *run_one(directory)]


def run_one(directory: RunDirectory) -> list[str]:
    """Return the command that is the process of a run."""
    return [sys.executable, "-m", "prime_spark.hook", "run-one", str(directory.path)]


def _environment(directory: RunDirectory) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    return {**kept, "LANG": "C.UTF-8", MARK: str(directory.path)}


def _call(command: Sequence[str], env: Mapping[str, str], output: int | None = None) -> None:
    try:
        done = subprocess.run(  # noqa: S603
            command,
            env=env,
            cwd=Path("/"),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL if output is None else output,
            stderr=subprocess.PIPE if output is None else output,
            timeout=_START_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise StartError(f"{command[0]}: {error}") from error
    if done.returncode != 0:
        text = " ".join((done.stderr or b"").decode(errors="replace").split())[-300:]
        raise StartError(f"{command[0]} ended with {done.returncode}: {text}")

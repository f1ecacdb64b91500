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

from prime_spark.hook.directory import RunDirectory
from prime_spark.hook.processes import MARK

_START_SECONDS = 30.0


class StartError(Exception):
    """The process of a run could not be started."""


class Starter(Protocol):
    """Starts and stops the process of a run. Both return at once and may be repeated."""

    def start(self, directory: RunDirectory) -> None:
        """Start the process; raises StartError."""

    def stop(self, directory: RunDirectory) -> None:
        """Ask the process to end its run."""


class ProcessStarter:
    """A session of its own. Nothing but the mark and the descent holds its processes together."""

    def start(self, directory: RunDirectory) -> None:
        """Start the process in the background."""
        with (directory.path / "log").open("ab") as log:
            # It forks: what stays is no child of ours, and no zombie.
            _call(["setsid", "--fork", *run_one(directory)], _environment(directory), log.fileno())

    def stop(self, directory: RunDirectory) -> None:
        """Send SIGTERM."""
        if pid := directory.process():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)


def run_one(directory: RunDirectory) -> list[str]:
    """Return the command that is the process of a run."""
    return [sys.executable, "-m", "prime_spark.hook", "run-one", str(directory.path)]


def _environment(directory: RunDirectory) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    return {**kept, "LANG": "C.UTF-8", MARK: str(directory.path)}


def _call(command: Sequence[str], env: Mapping[str, str], output: int) -> None:
    try:
        done = subprocess.run(  # noqa: S603
            command,
            env=env,
            cwd=Path("/"),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            timeout=_START_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise StartError(f"{command[0]}: {error}") from error
    if done.returncode != 0:
        raise StartError(f"{command[0]} ended with {done.returncode}")

"""How the process of a run is started so that it is no child of the service, and stopped."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

from prime_spark.hook.directory import RunDirectory
from prime_spark.hook.processes import MARK, end, marked, members, wait_for_end

_START_SECONDS = 30.0


class StartError(Exception):
    """The process of a run could not be started."""


class Starter(Protocol):
    """Starts and stops the process of a run. All may be repeated."""

    def start(self, directory: RunDirectory) -> None:
        """Start the process, at once; raises StartError."""

    def stop(self, directory: RunDirectory) -> None:
        """Ask the process to end its run, at once."""

    def end(self, directory: RunDirectory) -> list[int]:
        """End all that there is of the run; return the processes that could not be ended."""


class ProcessStarter:
    """A session of its own. Nothing but the mark and the descent holds its processes together."""

    def start(self, directory: RunDirectory) -> None:
        """Start the process in the background."""
        with (directory.path / "log").open("ab") as log:
            # It forks: what stays is no child of ours, and no zombie.
            _call(["setsid", "--fork", *run_one(directory)], _environment(directory), log.fileno())

    def stop(self, directory: RunDirectory) -> None:
        """Send SIGTERM."""
        _signal(directory, signal.SIGTERM)

    def end(self, directory: RunDirectory) -> list[int]:
        """End what carries the mark of the run."""
        return end(partial(marked, directory.path))


class UnitStarter:
    """A unit of its own: systemd starts one for each connection to a socket.

    So nobody but systemd needs rights for it, and only the unit has the run's credentials. When
    its process ends, systemd kills whatever else is in the unit, other users' processes too.
    """

    def __init__(self, socket_path: str) -> None:
        self._path = socket_path

    def start(self, directory: RunDirectory) -> None:
        """Connect, and name the directory."""
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(_START_SECONDS)
                connection.connect(self._path)
                connection.sendall(f"{directory.path}\n".encode())
        except OSError as error:
            raise StartError(f"{self._path}: {error}") from error

    def stop(self, directory: RunDirectory) -> None:
        """Send SIGTERM."""
        _signal(directory, signal.SIGTERM)

    def end(self, directory: RunDirectory) -> list[int]:
        """Kill the process, and wait until systemd has done so with the others of the unit."""
        _signal(directory, signal.SIGKILL)
        group = directory.group()
        return wait_for_end(partial(members, group)) if group else []


def run_one(directory: RunDirectory) -> list[str]:
    """Return the command that is the process of a run."""
    return [sys.executable, "-m", "prime_spark.hook", "run-one", str(directory.path)]


def _signal(directory: RunDirectory, number: signal.Signals) -> None:
    if pid := directory.process():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


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

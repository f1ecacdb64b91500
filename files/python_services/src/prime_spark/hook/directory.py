"""The directory of a run: what is to be run, who runs it, what happened, how it ended.

    order.json     written by the service
    claim          of the process that runs it: whoever makes it has the run, and keeps it locked
    events.jsonl   what ansible-runner tells, a line each
    result.json    how it ended, written by the process

The claim is what makes a run begin once: a process that finds one does nothing. The kernel gives
the lock back when the process is no more, however it ended.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from prime_spark.config import Config
from prime_spark.hook.queue import Ended
from prime_spark.hook.rules import Job
from prime_spark.hook.settings import AnsibleConfig
from prime_spark.runtime import atomic


class Order(Config, frozen=True):
    """What a run's process has to know."""

    run: int
    job: Job
    ansible: AnsibleConfig
    grace_seconds: float
    event_bytes: int


class Result(Config, frozen=True):
    """How a run ended; `ended` in Unix seconds."""

    state: Ended
    reason: Annotated[str, msgspec.Meta(max_length=2000)]
    ended: float


class Claim:
    """The lock of the process that has the run, for as long as it lives."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def release(self) -> None:
        """Give the lock back, as the end of the process does."""
        os.close(self._descriptor)


class RunDirectory:
    """One run's directory, for the service and for the run's process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.events = path / "events.jsonl"
        self.private = path / "private"

    def prepare(self, order: Order) -> None:
        """Make the directory, for nobody but us, and say what is to be run."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        atomic.replace(self.path / "order.json", msgspec.json.encode(order))

    def order(self) -> Order:
        """Return what is to be run."""
        return msgspec.json.decode((self.path / "order.json").read_bytes(), type=Order)

    def claim(self) -> Claim | None:
        """Take the run; None when it has been taken. A power cut does not undo it."""
        mine = self.path / f"claim.{os.getpid()}"
        descriptor = os.open(mine, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        # Locked before it is seen: a claim without a lock is of a process that is no more.
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.write(descriptor, str(os.getpid()).encode())
        try:
            os.link(mine, self.path / "claim")
        except FileExistsError:
            os.close(descriptor)
            return None
        finally:
            mine.unlink()
        atomic.sync_directory(self.path)
        return Claim(descriptor)

    def status(self) -> Literal["unclaimed", "alive", "lost"] | Result:
        """Return how the run stands; `lost` when its process ended without a result."""
        try:
            with (self.path / "claim").open("rb") as claim:
                fcntl.flock(claim, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return "unclaimed"
        except BlockingIOError:
            return "alive"
        try:
            return msgspec.json.decode((self.path / "result.json").read_bytes(), type=Result)
        except (FileNotFoundError, msgspec.MsgspecError):
            return "lost"

    def process(self) -> int | None:
        """Return the process that has the run, while it lives."""
        if self.status() != "alive":
            return None
        with contextlib.suppress(OSError, ValueError):
            return int((self.path / "claim").read_text())
        return None

    def finish(self, result: Result) -> None:
        """Say how the run ended; it is on the disk when this returns."""
        atomic.replace(self.path / "result.json", msgspec.json.encode(result))

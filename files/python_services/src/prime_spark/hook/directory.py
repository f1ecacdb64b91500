"""The directory of a run: what is to be run, who runs it, what happened, how it ended.

    order.json     written by the service
    claim          of the process that runs it: whoever makes it has the run, and keeps it locked;
                   its process, and the control group that it is in
    events.jsonl   what ansible-runner tells, a line each
    plan.json      what would change, of a run that is a plan or looked again before it applied one
    drift.json     the report of a run that looked for drift
    result.json    how it ended, written by the process

The claim is what makes a run begin once: a process that finds one does nothing. The kernel gives
the lock back when the process is no more, however it ended.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import msgspec

from prime_spark.config import Config
from prime_spark.hook.drift import Report
from prime_spark.hook.plan import Plan
from prime_spark.hook.processes import own_group
from prime_spark.hook.queue import Ended, HostResult
from prime_spark.hook.rules import Job
from prime_spark.hook.settings import AnsibleConfig
from prime_spark.runtime import atomic

T = TypeVar("T", bound=msgspec.Struct)


class Order(Config, frozen=True):
    """What a run's process has to know."""

    run: int
    job: Job
    ansible: AnsibleConfig
    grace_seconds: float
    event_bytes: int


class Result(Config, frozen=True):
    """How a run ended, also on each host; `ended` in Unix seconds."""

    state: Ended
    reason: Annotated[str, msgspec.Meta(max_length=2000)]
    ended: float
    results: dict[str, HostResult] = msgspec.field(default_factory=dict)


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
        os.write(descriptor, f"{os.getpid()}\n{own_group()}".encode())
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
        return self._read("result.json", Result) or "lost"

    def process(self) -> int | None:
        """Return the process that has the run, while it lives."""
        if self.status() != "alive":
            return None
        with contextlib.suppress(OSError, ValueError):
            return int(self._claimed()[0])
        return None

    def group(self) -> str:
        """Return the control group of the process that has the run, or had it; else nothing."""
        with contextlib.suppress(OSError, ValueError):
            return self._claimed()[1]
        return ""

    def _claimed(self) -> tuple[str, str]:
        pid, _, group = (self.path / "claim").read_text().partition("\n")
        return pid, group

    def write_plan(self, plan: Plan) -> None:
        """Keep what would change."""
        self._write("plan.json", msgspec.json.encode(plan))

    def plan(self) -> Plan | None:
        """Return what would change, where the run has looked."""
        return self._read("plan.json", Plan)

    def write_drift(self, report: Report) -> None:
        """Keep what has drifted."""
        self._write("drift.json", msgspec.json.encode(report))

    def drift(self) -> Report | None:
        """Return what has drifted, where the run could tell."""
        return self._read("drift.json", Report)

    def finish(self, result: Result) -> None:
        """Say how the run ended; it is on the disk when this returns."""
        self._write("result.json", msgspec.json.encode(result))

    def _read(self, name: str, kind: type[T]) -> T | None:
        try:
            return msgspec.json.decode((self.path / name).read_bytes(), type=kind)
        except (FileNotFoundError, msgspec.MsgspecError):
            return None

    def _write(self, name: str, data: bytes) -> None:
        atomic.replace(self.path / name, data)

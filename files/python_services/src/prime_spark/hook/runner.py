"""`prime-spark-hook run-one`: the process of one run, which is not the service's child.

It makes everything that the run starts its own, so that whatever a worker leaves behind can be
found and ended: ansible-runner's own cancel kills a process group, which workers leave.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO, Literal

import ansible_runner
import msgspec

from prime_spark.hook.directory import Order, Result, RunDirectory
from prime_spark.hook.drift import HostReport, Report
from prime_spark.hook.plan import Planner
from prime_spark.hook.processes import MARK, adopt_orphans, end_descendants
from prime_spark.hook.queue import Ended, HostResult
from prime_spark.hook.repository import revision_of

# The hook answers while playbooks work.
_NICE = 5
_REASON_CHARS = 1000
_SSH_PROGRAMS = ("ssh", "sftp", "scp")
# What the unit of a run may have, and the service does not have.
_CREDENTIALS = "CREDENTIALS_DIRECTORY"
_INVENTORY_PASSWORD = "inventory_password"  # noqa: S105
_SSH_KEY = "ssh_key"
_DARK: Literal["unreachable"] = "unreachable"


def run_one(path: Path) -> int:
    """Do what the order in the directory `path` says, unless another process does."""
    directory = RunDirectory(path)
    order = directory.order()
    if directory.claim() is None:
        return 0
    ending = _Ending(order.job.timeout_seconds, order.grace_seconds)
    signal.signal(signal.SIGTERM, ending.cancel)
    signal.signal(signal.SIGINT, ending.cancel)
    os.nice(_NICE)
    adopt_orphans()
    shutil.rmtree(directory.private, ignore_errors=True)
    try:
        with directory.events.open("ab") as stream:
            events = _Events(stream, order.event_bytes)
            state, reason = _Play(directory, order, events, ending).whole()
    finally:
        left = ending.finish()
        # Variables, facts and what else Ansible has put down.
        shutil.rmtree(directory.private, ignore_errors=True)
    if left:
        reason = f"{reason}; still there: processes {', '.join(map(str, left))}"
    directory.finish(
        Result(
            state=state,
            reason=reason[:_REASON_CHARS],
            ended=time.time(),
            results=events.results(),
        )
    )
    # The claim goes with the process: whoever sees that the run has ended sees no process of it.
    return 0


def environment(order: Order, private: Path) -> dict[str, str]:
    """Return all that a run sees of the environment; `write_wrappers` makes what it names."""
    ansible = order.ansible
    vault = credential(_INVENTORY_PASSWORD)
    return {
        "PATH": f"{ansible.programs}:/usr/local/bin:/usr/bin:/bin",
        "HOME": str(private / "home"),
        "LANG": "C.UTF-8",
        "ANSIBLE_HOST_KEY_CHECKING": "True",
        **{f"ANSIBLE_{name.upper()}_EXECUTABLE": str(private / name) for name in _SSH_PROGRAMS},
        # For a second run of Ansible in this process, too.
        **({_CREDENTIALS: os.environ[_CREDENTIALS]} if _CREDENTIALS in os.environ else {}),
        **({"ANSIBLE_VAULT_IDENTITY_LIST": f"hook@{vault}"} if vault else {}),
        **ansible.environment,
    }


def credential(name: str) -> Path | None:
    """Return the file of a credential, where the unit of the run has it."""
    directory = os.environ.get(_CREDENTIALS)
    if directory is None or not (path := Path(directory) / name).exists():
        return None
    return path


def write_wrappers(order: Order, private: Path) -> None:
    """Write the programs that give SSH its host keys before anything that Ansible says.

    Of an option SSH takes what comes first, and `ssh_args` of the checkout's ansible.cfg come
    before all that the environment says. Of keys to log in with, all count.
    """
    keys = shlex.quote(f"UserKnownHostsFile={order.ansible.known_hosts}")
    if own := credential(_SSH_KEY):
        keys += " -o " + shlex.quote(f"IdentityFile={own}")
    for name in _SSH_PROGRAMS:
        wrapper = private / name
        wrapper.write_text(
            f'#!/bin/sh\nexec {name} -o {keys} -o StrictHostKeyChecking=yes "$@"\n',
            encoding="utf-8",
        )
        wrapper.chmod(0o700)


class _Play:
    """What the order says: a run of ansible-playbook, with a look before it that applies a plan."""

    def __init__(
        self, directory: RunDirectory, order: Order, events: _Events, ending: _Ending
    ) -> None:
        self._directory = directory
        self._order = order
        self._events = events
        self._ending = ending

    def whole(self) -> tuple[Ended, str]:
        """Return how it ended, and why."""
        job = self._order.job
        if job.plans:
            return self._plan()[:2]
        if job.report is not None:
            return self._report()
        if job.applies is not None:
            state, reason, seen = self._plan()
            if state != "succeeded":
                return state, reason
            if seen != job.applies.plan_hash:
                return "plan_changed", "what would change is no longer what was approved"
            self._events.begin("Nothing has changed since it was approved: apply")
        return self._ansible("apply", check=job.check)

    def _plan(self) -> tuple[Ended, str, str]:
        """See what would change, and keep that; return its hash, too."""
        job, checkout = self._order.job, self._order.ansible.checkout
        revision = job.commit or revision_of(checkout)
        self._events.planner = Planner(checkout, revision)
        state, reason = self._ansible("plan", check=True)
        plan = self._events.planner.plan()
        self._events.planner = None
        self._directory.write_plan(plan)
        return state, reason, plan.hash

    def _report(self) -> tuple[Ended, str]:
        """Play, and keep the report that the playbook writes."""
        file = self._directory.private / "drift.json"
        state, reason = self._ansible("apply", check=False, drift_file=str(file))
        if self._ending.early() is not None:
            return state, reason
        try:
            report = msgspec.json.decode(file.read_bytes(), type=Report)
        except FileNotFoundError:
            # With nobody left to play on, the playbook writes nothing.
            dark = [host for host, result in self._events.results().items() if result == _DARK]
            if not dark or state != _DARK:
                return state, reason
            report = Report({host: HostReport(_DARK, {}) for host in dark})
        except msgspec.MsgspecError as error:
            return "failed", f"no report: {error}"
        states = {host.state for host in report.hosts.values()}
        if state == "failed" and "refused" not in states:
            return state, reason
        self._directory.write_drift(report)
        return "succeeded", ""

    def _ansible(self, phase: str, *, check: bool, **variables: str) -> tuple[Ended, str]:
        """Run ansible-playbook in a directory of its own."""
        if (ended := self._ending.early()) is not None:
            return ended
        job, ansible = self._order.job, self._order.ansible
        private = self._directory.private / phase
        (private / "env").mkdir(mode=0o700, parents=True)
        self._directory.private.chmod(0o700)
        (private / "home").mkdir(mode=0o700)
        write_wrappers(self._order, private)
        seen = environment(self._order, private)
        # Not as arguments: everybody sees those.
        (private / "env" / "extravars").write_bytes(msgspec.json.encode(job.variables | variables))
        os.environ.clear()
        os.environ.update(seen)
        os.environ[MARK] = str(self._directory.path)
        try:
            runner = ansible_runner.run(
                private_data_dir=str(private),
                project_dir=ansible.checkout,
                inventory=ansible.inventories(),
                playbook=job.playbook,
                limit=job.limit,
                tags=",".join(job.tags) or None,
                cmdline="--check --diff" if check else None,
                ident="run",
                quiet=True,
                event_handler=self._events.take,
                # Without one, ansible-runner takes the signals' handlers away.
                cancel_callback=lambda: False,
            )
        except Exception as error:  # noqa: BLE001 (pexpect's and ansible-runner's own)
            status, reason = "failed", f"ansible-runner: {type(error).__name__}: {error}"
        else:
            status, reason = runner.status, f"ansible-playbook ended with {runner.rc}"
        if status == "successful":
            return "succeeded", ""
        return self._ending.early() or self._events.verdict(reason)


class _Events:
    """Keeps events as lines of JSON, up to a size, and what they say about the end."""

    def __init__(self, stream: BinaryIO, max_bytes: int) -> None:
        self._stream = stream
        self._left = max_bytes
        self._stats: dict[str, Any] = {}
        self.planner: Planner | None = None

    def begin(self, what: str) -> None:
        """Say that another run of ansible-playbook follows."""
        self._stats = {}
        self.take({"event": "phase", "stdout": what})

    def take(self, event: dict[str, Any]) -> bool:
        """Keep an event here, and not as a file of its own."""
        if event.get("event") == "playbook_on_stats":
            self._stats = event.get("event_data", {})
        if self.planner is not None:
            self.planner.take(event)
        line = msgspec.json.encode(event) + b"\n"
        if self._left > 0:
            self._left -= len(line)
            if self._left <= 0:
                line = b'{"event":"cut_off"}\n'
            self._stream.write(line)
            self._stream.flush()
        return False

    def results(self) -> dict[str, HostResult]:
        """Return how it was for each host."""
        found: dict[str, HostResult] = dict.fromkeys(self._stats.get("processed") or {}, "ok")
        kinds: tuple[tuple[str, HostResult], ...] = (
            ("changed", "changed"),
            ("dark", "unreachable"),
            ("failures", "failed"),
        )
        for key, result in kinds:
            found |= dict.fromkeys(self._stats.get(key) or {}, result)
        return found

    def verdict(self, otherwise: str) -> tuple[Ended, str]:
        """Return how a run that did not succeed ended: hosts failed, or are only unreachable."""
        failed, dark = (sorted(self._stats.get(key) or {}) for key in ("failures", "dark"))
        parts = [("failed", failed), ("unreachable", dark)]
        reason = "; ".join(f"{what}: {', '.join(hosts)}" for what, hosts in parts if hosts)
        state: Ended = "unreachable" if dark and not failed else "failed"
        return state, reason or otherwise


class _Ending:
    """Ends what the run has started: when it is asked to, when time is up, and at the end."""

    def __init__(self, seconds: float, grace: float) -> None:
        self._why: Ended | None = None
        self._reason = ""
        self._seconds = seconds
        self._grace = grace
        self._asked = threading.Event()
        self._finished = False
        self._thread = threading.Thread(target=self._watch, name="ending", daemon=True)
        self._thread.start()

    def cancel(self, number: int, _frame: FrameType | None) -> None:
        """Handle a signal."""
        if self._why is None:
            self._why, self._reason = "cancelled", f"by {signal.Signals(number).name}"
        self._asked.set()

    def early(self) -> tuple[Ended, str] | None:
        """Return how the run is to end before it has ended by itself, and why."""
        return None if self._why is None else (self._why, self._reason)

    def finish(self) -> list[int]:
        """End what is left; return what could not be ended."""
        self._finished = True
        self._asked.set()
        self._thread.join()
        return end_descendants(0.0)

    def _watch(self) -> None:
        if not self._asked.wait(self._seconds):
            self._why, self._reason = "timed_out", f"after {self._seconds:g} s"
        if not self._finished:
            end_descendants(self._grace)

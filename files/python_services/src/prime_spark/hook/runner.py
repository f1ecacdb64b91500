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
from typing import Any, BinaryIO

import ansible_runner
import msgspec

from prime_spark.hook.directory import Order, Result, RunDirectory
from prime_spark.hook.processes import MARK, adopt_orphans, end_descendants
from prime_spark.hook.queue import Ended

# The hook answers while playbooks work.
_NICE = 5
_REASON_CHARS = 1000
_SSH_PROGRAMS = ("ssh", "sftp", "scp")


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
            state, reason = _play(directory, order, events, ending)
    finally:
        left = ending.finish()
        # Variables, facts and what else Ansible has put down.
        shutil.rmtree(directory.private, ignore_errors=True)
    if left:
        reason = f"{reason}; still there: processes {', '.join(map(str, left))}"
    directory.finish(Result(state=state, reason=reason[:_REASON_CHARS], ended=time.time()))
    # The claim goes with the process: whoever sees that the run has ended sees no process of it.
    return 0


def environment(order: Order, private: Path) -> dict[str, str]:
    """Return all that a run sees of the environment; `write_wrappers` makes what it names."""
    ansible = order.ansible
    return {
        "PATH": f"{ansible.programs}:/usr/local/bin:/usr/bin:/bin",
        "HOME": str(private / "home"),
        "LANG": "C.UTF-8",
        "ANSIBLE_HOST_KEY_CHECKING": "True",
        **{f"ANSIBLE_{name.upper()}_EXECUTABLE": str(private / name) for name in _SSH_PROGRAMS},
        **ansible.environment,
    }


def write_wrappers(order: Order, private: Path) -> None:
    """Write the programs that give SSH its host keys before anything that Ansible says.

    Of an option SSH takes what comes first, and `ssh_args` of the checkout's ansible.cfg come
    before all that the environment says.
    """
    keys = shlex.quote(f"UserKnownHostsFile={order.ansible.known_hosts}")
    for name in _SSH_PROGRAMS:
        wrapper = private / name
        wrapper.write_text(
            f'#!/bin/sh\nexec {name} -o {keys} -o StrictHostKeyChecking=yes "$@"\n',
            encoding="utf-8",
        )
        wrapper.chmod(0o700)


def _play(
    directory: RunDirectory, order: Order, events: _Events, ending: _Ending
) -> tuple[Ended, str]:
    job, private = order.job, directory.private
    (private / "env").mkdir(mode=0o700, parents=True)
    private.chmod(0o700)
    (private / "home").mkdir(mode=0o700)
    write_wrappers(order, private)
    # Not as arguments: everybody sees those.
    (private / "env" / "extravars").write_bytes(msgspec.json.encode(job.variables))
    os.environ.clear()
    os.environ.update(environment(order, private))
    os.environ[MARK] = str(directory.path)
    try:
        runner = ansible_runner.run(
            private_data_dir=str(private),
            project_dir=order.ansible.checkout,
            inventory=str(Path(order.ansible.checkout) / order.ansible.inventory),
            playbook=job.playbook,
            limit=job.limit,
            tags=",".join(job.tags) or None,
            cmdline="--check --diff" if job.check else None,
            ident="run",
            quiet=True,
            event_handler=events.take,
            # Without one, ansible-runner takes the signals' handlers away.
            cancel_callback=lambda: False,
        )
    except Exception as error:  # noqa: BLE001 (pexpect's and ansible-runner's own)
        status, reason = "failed", f"ansible-runner: {type(error).__name__}: {error}"
    else:
        status, reason = runner.status, f"ansible-playbook ended with {runner.rc}"
    if status == "successful":
        return "succeeded", ""
    if ending.why is not None:
        return ending.why, ending.reason
    return events.verdict(reason)


class _Events:
    """Keeps events as lines of JSON, up to a size, and what they say about the end."""

    def __init__(self, stream: BinaryIO, max_bytes: int) -> None:
        self._stream = stream
        self._left = max_bytes
        self._stats: dict[str, Any] = {}

    def take(self, event: dict[str, Any]) -> bool:
        """Keep an event here, and not as a file of its own."""
        if event.get("event") == "playbook_on_stats":
            self._stats = event.get("event_data", {})
        line = msgspec.json.encode(event) + b"\n"
        if self._left > 0:
            self._left -= len(line)
            if self._left <= 0:
                line = b'{"event":"cut_off"}\n'
            self._stream.write(line)
            self._stream.flush()
        return False

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
        self.why: Ended | None = None
        self.reason = ""
        self._seconds = seconds
        self._grace = grace
        self._asked = threading.Event()
        self._finished = False
        self._thread = threading.Thread(target=self._watch, name="ending", daemon=True)
        self._thread.start()

    def cancel(self, number: int, _frame: FrameType | None) -> None:
        """Handle a signal."""
        if self.why is None:
            self.why, self.reason = "cancelled", f"by {signal.Signals(number).name}"
        self._asked.set()

    def finish(self) -> list[int]:
        """End what is left; return what could not be ended."""
        self._finished = True
        self._asked.set()
        self._thread.join()
        return end_descendants(0.0)

    def _watch(self) -> None:
        if not self._asked.wait(self._seconds):
            self.why, self.reason = "timed_out", f"after {self._seconds:g} s"
        if not self._finished:
            end_descendants(self._grace)

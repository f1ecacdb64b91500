"""Callback ``failures``: what ended the run for which hosts, said again after the recap."""

from __future__ import annotations

import json
import os
import textwrap
from typing import Any

from ansible import constants
from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: failures
type: notification
short_description: Say after the recap what ended the run, and for which hosts
description:
  - A run's first failure scrolls away long before its end, and the recap only counts.
  - Hosts that ended in the same task with the same message share an entry.
  - Failures that were ignored or rescued are not repeated; censored results stay censored.
options:
  outcome:
    description: File into which to write, as JSON, which hosts C(failed) and which were
      C(unreachable). The exit status is the same for hosts that were unreachable, for some that
      failed beside them, and for an inventory that could not be read.
    type: path
    env:
      - name: PRIME_SPARK_OUTCOME
"""

# Enough of a message to act on; all of it stands where it happened.
MESSAGE_LINES = 12


def sentences(result: dict[str, Any]) -> str:
    """What a failed result says: its message, its error output."""
    message = str(result.get("msg") or result.get("censored") or "")
    details = str(result.get("stderr") or result.get("module_stderr") or "").strip()
    # `command` says "non-zero return code" and leaves the reason to what the program wrote.
    if details and details not in message:
        message = f"{message}\n{details}" if message else details
    return message.strip() or "it gave no reason"


def shortened(message: str) -> list[str]:
    """The message's first and last lines, at most MESSAGE_LINES and one for what was left out."""
    lines = [line.rstrip() for line in message.splitlines()]
    left_out = len(lines) - MESSAGE_LINES
    if left_out <= 1:
        return lines
    half = MESSAGE_LINES // 2
    return [*lines[:half], f"[{left_out} more lines, see above]", *lines[-half:]]


class CallbackModule(CallbackBase):
    """Keeps the last failure of every host; prints those of the hosts that ended in one."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "notification"
    CALLBACK_NAME = "failures"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._last: dict[str, tuple[str, str, str]] = {}
        # What the failed items of loops said, by host and task. Which items failed does not stand
        # in the loop's own result with every version of Ansible.
        self._items: dict[tuple[str, str], list[str]] = {}

    def _keep(self, result: Any) -> None:
        task = result.task
        path = os.path.relpath(os.path.realpath(task.get_path())) if task.get_path() else ""
        said = self._items.pop((result.host.get_name(), task._uuid), [])
        message = "\n".join(dict.fromkeys(said)) or sentences(result.result)
        self._last[result.host.get_name()] = (task.get_name(), path, message)

    def v2_runner_item_on_failed(self, result: Any) -> None:
        key = (result.host.get_name(), result.task._uuid)
        self._items.setdefault(key, []).append(sentences(result.result))

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        if not ignore_errors:
            self._keep(result)

    def v2_runner_on_unreachable(self, result: Any) -> None:
        if not result.task.ignore_unreachable:
            self._keep(result)

    def v2_playbook_on_stats(self, stats: Any) -> None:
        if path := self.get_option("outcome"):
            outcome = {"failed": sorted(stats.failures), "unreachable": sorted(stats.dark)}
            with open(path, "w", encoding="utf-8") as stream:
                json.dump(outcome, stream)
        hosts: dict[tuple[str, str, str], list[str]] = {}
        for host in sorted({*stats.failures, *stats.dark}):
            if host in self._last:
                hosts.setdefault(self._last[host], []).append(host)
        for (task, path, message), names in hosts.items():
            lines = [f"FAILED   {', '.join(names)}: {task}", *shortened(message)]
            if path:
                lines.append(f"in {path}")
            text = "\n".join([lines[0], textwrap.indent("\n".join(lines[1:]), " " * 9)])
            self._display.display(text, color=constants.COLOR_ERROR)

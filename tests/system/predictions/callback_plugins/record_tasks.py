"""Callback that writes one JSON line per task result, for comparing a prediction with a run.

Does nothing unless PRIME_SPARK_RECORD names the file to append to. Lines hold names and verdicts,
never a result's content, so no secret can get into them. Loaded through ANSIBLE_CALLBACK_PLUGINS
and ANSIBLE_CALLBACKS_ENABLED, in tests only.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: record_tasks
type: notification
short_description: Record every task result as a line of JSON
description:
  - Appends host, role, task, item, changed, skipped, failed and check mode of each result to the
    file named by PRIME_SPARK_RECORD.
options: {}
"""


class CallbackModule(CallbackBase):
    """Appends ``{run, playbook, play, host, role, task, path, item, …}`` and the verdicts."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "notification"
    CALLBACK_NAME = "record_tasks"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._path = os.environ.get("PRIME_SPARK_RECORD", "")
        self._play = ""
        self._run = {"run": f"{time.time():.3f}-{os.getpid()}", "playbook": ""}
        self.disabled = not self._path

    def v2_playbook_on_start(self, playbook: Any) -> None:
        self._run["playbook"] = os.path.basename(playbook._file_name)

    def v2_playbook_on_play_start(self, play: Any) -> None:
        self._play = str(play.get_name())

    def _write(self, result: Any, *, skipped: bool = False, failed: bool = False) -> None:
        if not self._path:
            return
        task = result.task if hasattr(result, "task") else result._task
        host = result.host if hasattr(result, "host") else result._host
        content = result.result if hasattr(result, "result") else result._result
        role = getattr(task, "_role", None)
        line = {
            **self._run,
            "play": self._play,
            "host": host.get_name(),
            "role": role.get_name(include_role_fqcn=False) if role else "",
            "task": task.name or task.action,
            "path": os.path.relpath(os.path.realpath((task.get_path() or "").rpartition(":")[0])),
            "item": str(content.get("item", "")),
            "changed": bool(content.get("changed")),
            "skipped": skipped,
            "failed": failed,
            "check_mode": bool(task.check_mode),
        }
        # One write each: the lines of parallel runs into one file do not mix.
        with open(self._path, "a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")

    def v2_runner_on_ok(self, result: Any) -> None:
        self._write(result)

    def v2_runner_on_skipped(self, result: Any) -> None:
        self._write(result, skipped=True)

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        self._write(result, failed=True)

    def v2_runner_on_unreachable(self, result: Any) -> None:
        self._write(result, failed=True)

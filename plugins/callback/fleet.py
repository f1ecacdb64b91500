"""Callback ``fleet``: Ansible's default output without the plays in which nothing happens."""

from __future__ import annotations

from typing import Any

from ansible import constants
from ansible.plugins.callback.default import CallbackModule as Default

DOCUMENTATION = """
name: fleet
type: stdout
short_description: The default output, without plays in which nothing is played
description:
  - A run leaves out the roles that are in sync. Their plays are not announced.
extends_documentation_fragment:
  - default_callback
  - result_format_callback
"""


class CallbackModule(Default):
    """Announces a play with its first task."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "stdout"
    CALLBACK_NAME = "fleet"

    def __init__(self) -> None:
        super().__init__()
        self._unannounced: Any = None

    def announce(self) -> None:
        """Print the play's banner, once."""
        if self._unannounced is not None:
            play, self._unannounced = self._unannounced, None
            super().v2_playbook_on_play_start(play)

    def v2_playbook_on_play_start(self, play: Any) -> None:
        self._unannounced = play

    def v2_playbook_on_no_hosts_matched(self) -> None:
        self._unannounced = None

    def v2_playbook_on_task_start(self, task: Any, is_conditional: bool) -> None:
        # What ends a play early for a host says nothing to an operator.
        if task.action not in constants._ACTION_META:
            self.announce()
            super().v2_playbook_on_task_start(task, is_conditional)

    def v2_runner_on_skipped(self, result: Any) -> None:
        if result.task.action not in constants._ACTION_META:
            super().v2_runner_on_skipped(result)

    def v2_playbook_on_handler_task_start(self, task: Any) -> None:
        self.announce()
        super().v2_playbook_on_handler_task_start(task)

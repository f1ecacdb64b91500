"""Writes what Ansible knows of every host at the end of a run to a file."""

from __future__ import annotations

import json
import os
from typing import Any

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: dump_variables
type: aggregate
short_description: Variables of all hosts at the end of a run, templates not resolved
"""


class CallbackModule(CallbackBase):
    """Keeps the variable manager of the plays, asks it at the end."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "dump_variables"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        super().__init__()
        self._manager: Any = None

    def v2_playbook_on_play_start(self, play: Any) -> None:
        self._manager = play.get_variable_manager()

    def v2_playbook_on_stats(self, stats: Any) -> None:
        inventory = self._manager._inventory
        dumped = {
            host.name: self._manager.get_vars(host=host, include_hostvars=False)
            for host in inventory.get_hosts("all")
        }
        with open(os.environ["PRIME_SPARK_TEST_DUMP"], "w", encoding="utf-8") as stream:
            json.dump(dumped, stream, default=str)

"""Action side of modules without one of their own: tells them for which role and run they work.

meta/runtime.yml names these modules.
"""

from __future__ import annotations

from typing import Any

from ansible_collections.prime_spark.fleet.plugins.action.config_tree import (
    ActionModule as ConfigTree,
)


class ActionModule(ConfigTree):
    """Hand the task's arguments on, with the owner of what the module brings up."""

    def module_arguments(self, task_vars: dict[str, Any]) -> dict[str, Any]:
        return {**self._task.args, **self.owner(task_vars)}

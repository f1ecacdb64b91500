"""Action side of ``wireguard_key``: tells the module for which role and run it works."""

from __future__ import annotations

from typing import Any

from ansible.plugins.loader import action_loader

ConfigTree: Any = action_loader.get("config_tree", class_only=True)


class ActionModule(ConfigTree):
    """Hand the task's arguments on, with the owner of what the module brings up."""

    MODULE = "wireguard_key"

    def module_arguments(self, task_vars: dict[str, Any]) -> dict[str, Any]:
        return {**self._task.args, **self.owner(task_vars)}

"""Action side of ``converge_command``: sends along what check mode has to look at."""

from __future__ import annotations

import hashlib
import os
from typing import Any

from ansible_collections.prime_spark.fleet.plugins.action.config_tree import (
    ActionModule as ConfigTree,
)
from ansible_collections.prime_spark.fleet.plugins.plugin_utils.catalogue import ROOT


class ActionModule(ConfigTree):
    """Render the files that check mode stages; outside it, send none of them."""

    def module_arguments(self, task_vars: dict[str, Any]) -> dict[str, Any]:
        if self._task.check_mode:
            arguments: dict[str, Any] = super().module_arguments(task_vars)
            if wanted := arguments.get("release_files"):
                arguments["release_digest"] = self.digest_of(str(wanted))
            return arguments
        arguments = dict(self._task.args)
        for key in ("trees", "files", "secret_files"):
            arguments.pop(key, None)
        return {**arguments, **self.owner(task_vars)}

    @staticmethod
    def digest_of(below: str) -> str:
        """Hash over the files of a directory of the services' sources, as the module makes it."""
        source = os.path.join(ROOT, "files", "python_services", "src", below)
        digest = hashlib.sha256()
        for name in sorted(os.listdir(source)):
            path = os.path.join(source, name)
            if os.path.isfile(path) and not name.endswith(".pyc"):
                with open(path, "rb") as stream:
                    content = hashlib.sha256(stream.read()).hexdigest()
                digest.update(f"{name}\0{content}\0".encode())
        return digest.hexdigest()

"""Action side of ``converge_command``: sends along what check mode has to look at."""

from __future__ import annotations

import hashlib
import os
from typing import Any

from ansible.plugins.loader import action_loader

ConfigTree: Any = action_loader.get("config_tree", class_only=True)


class ActionModule(ConfigTree):
    """Render the files that check mode stages; outside it, send none of them."""

    MODULE = "converge_command"

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

    def digest_of(self, below: str) -> str:
        """Hash over the files of a directory of the services' sources, as the module makes it."""
        directory = self._loader.get_basedir()
        while not os.path.isdir(os.path.join(directory, "files", "python_services")):
            if directory == os.path.dirname(directory):
                return ""
            directory = os.path.dirname(directory)
        source = os.path.join(directory, "files", "python_services", "src", below)
        digest = hashlib.sha256()
        for name in sorted(os.listdir(source)):
            path = os.path.join(source, name)
            if os.path.isfile(path) and not name.endswith(".pyc"):
                with open(path, "rb") as stream:
                    content = hashlib.sha256(stream.read()).hexdigest()
                digest.update(f"{name}\0{content}\0".encode())
        return digest.hexdigest()

"""Action side of ``compose_project``: render the project's directory and send it in one run."""

from __future__ import annotations

import hashlib
import os
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible_collections.prime_spark.fleet.plugins.action.config_tree import (
    ActionModule as ConfigTree,
)
from ansible_collections.prime_spark.fleet.plugins.plugin_utils.endpoints import ROLES, defaults_of

STACK = "/opt/prime-spark/stack"


class ActionModule(ConfigTree):
    """Render ``templates/stack`` of the calling role into the project directory."""

    def module_arguments(self, task_vars: dict[str, Any]) -> dict[str, Any]:
        name = self._task.args.get("name")
        if not name:
            raise AnsibleActionFail("compose_project: name is required")
        self.directory = directory = f"{STACK}/{name}"
        trees = [{"src": "stack", "dest": directory, "purge": True}]
        trees += self._task.args.get("trees") or []
        environment = dict(self._task.args.get("environment") or {})
        self._task.args = {**self._task.args, "trees": trees, "directory": directory}
        arguments: dict[str, Any] = super().module_arguments(task_vars)
        arguments.pop("environment", None)
        for key in ("files", "secret_files"):
            arguments[key] = [
                {**file, "path": os.path.join(directory, file["path"])} for file in arguments[key]
            ]
        live = {entry["service"]: entry["paths"] for entry in arguments.get("reload") or []}
        for service, digest in self.config_hashes(arguments, directory, live).items():
            environment[f"CONFIG_HASH_{service.upper().replace('-', '_')}"] = digest
        lines = [f"{key}={environment[key]}\n" for key in sorted(environment)]
        arguments["secret_files"].append(
            {"path": os.path.join(directory, ".env"), "content": "".join(lines), "mode": "0600"}
        )
        return arguments

    def render_tree(
        self, tree: dict[str, Any], task_vars: dict[str, Any]
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """As of any tree; ``dest`` is below the project's directory."""
        found: tuple[list[dict[str, Any]], list[dict[str, Any]]] = super().render_tree(
            {**tree, "dest": os.path.join(self.directory, tree["dest"])}, task_vars
        )
        return found

    def render(self, source: str, path: str, task_vars: dict[str, Any]) -> str:
        """As any template; those of a project find what the role docker has for all containers."""
        search = [*task_vars.get("ansible_search_path", []), str(ROLES / "docker")]
        variables = {**defaults_of("docker"), **task_vars, "ansible_search_path": search}
        return str(super().render(source, path, variables))

    @staticmethod
    def config_hashes(
        arguments: dict[str, Any], directory: str, live: dict[str, list[str]] | None = None
    ) -> dict[str, str]:
        """A hash per service over the files below ``config/<service>``.

        ``live`` are the paths below that, by service, that the service reads again by itself or
        when told to: a change of them restarts nothing.

        Compose does not notice that the content of a bind mount changed. Each service carries this
        hash as a label, so that compose itself recreates exactly the services whose files changed.
        """
        prefix = os.path.join(directory, "config") + os.sep
        digests: dict[str, Any] = {}
        files = arguments["files"] + arguments["secret_files"]
        for file in sorted(files, key=lambda f: str(f["path"])):
            if not file["path"].startswith(prefix):
                continue
            service, _, below = file["path"].removeprefix(prefix).partition(os.sep)
            digest = digests.setdefault(service, hashlib.sha256())
            if any(f"{below}/".startswith(f"{path}/") for path in (live or {}).get(service, [])):
                continue
            digest.update(f"{file['path']}\0{file.get('mode')}\0{file['content']}\0".encode())
        return {service: digest.hexdigest()[:16] for service, digest in digests.items()}

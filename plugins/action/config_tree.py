"""Action side of ``config_tree``: render the trees here, send them in one module run."""

from __future__ import annotations

import os
from typing import Any

from ansible.errors import AnsibleActionFail, AnsibleError
from ansible.plugins.action import ActionBase
from ansible.template import trust_as_template

TREE_KEYS = {"src", "dest", "owner", "group", "mode", "dir_mode", "secret", "purge", "directory"}


class ActionModule(ActionBase):
    """Render ``trees`` and hand everything to the module of the task."""

    def run(
        self, tmp: str | None = None, task_vars: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        result.update(
            self._execute_module(
                module_args=self.module_arguments(task_vars or {}), task_vars=task_vars
            )
        )
        return result

    def module_arguments(self, task_vars: dict[str, Any]) -> dict[str, Any]:
        """The task's arguments with every tree turned into files and directories."""
        arguments = dict(self._task.args)
        trees = arguments.pop("trees", None) or []
        arguments.update(self.owner(task_vars))
        for key in ("files", "secret_files", "directories"):
            arguments[key] = list(arguments.get(key) or [])
        if arguments.get("state") == "absent":
            return arguments
        for tree in trees:
            unknown = set(tree) - TREE_KEYS
            if unknown or not {"src", "dest"} <= set(tree):
                raise AnsibleActionFail(
                    f"{self._task.action}: a tree needs src and dest and knows "
                    f"{sorted(TREE_KEYS)}, got {sorted(tree)}"
                )
            files, directories = self.render_tree(tree, task_vars)
            arguments["secret_files" if tree.get("secret") else "files"] += files
            arguments["directories"] += directories
        return arguments

    def owner(self, task_vars: dict[str, Any]) -> dict[str, str]:
        """The role and the run that a module notes for what it brings up."""
        # Delegated, it belongs to the role on this host, and not to one of that other host.
        role = "" if self._task.delegate_to else self.role_name(task_vars)
        return {"role": role, "run": str((task_vars.get("fleet_plan") or {}).get("run", ""))}

    @staticmethod
    def role_name(task_vars: dict[str, Any]) -> str:
        """The role that the operator knows: of roles that import each other, the outermost."""
        # Innermost parent first.
        parents = list(task_vars.get("ansible_parent_role_names") or [])
        name = str(parents[-1] if parents else task_vars.get("role_name", ""))
        return name.removeprefix("prime_spark.fleet.")

    def render_tree(
        self, tree: dict[str, Any], task_vars: dict[str, Any]
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Render every file below ``src``; returns the files and the directories they need."""
        try:
            source = self._find_needle("templates", tree["src"])
        except AnsibleError as error:
            raise AnsibleActionFail(str(error)) from error
        common = {"owner": tree.get("owner", "root"), "group": tree.get("group", "root")}
        secret = bool(tree.get("secret"))
        directory_mode = tree.get("dir_mode", "0700" if secret else "0755")
        files = []
        # In a directory shared with others (/etc/systemd/system) only the files are ours.
        directories = []
        if tree.get("directory", True):
            directories.append(
                {
                    "path": tree["dest"],
                    "mode": directory_mode,
                    "purge": bool(tree.get("purge", False)),
                    **common,
                }
            )
        for root, names, leaves in os.walk(source):
            names.sort()
            below = os.path.relpath(root, source)
            if below != "." and tree.get("directory", True):
                directories.append(
                    {"path": os.path.join(tree["dest"], below), "mode": directory_mode, **common}
                )
            for leaf in sorted(leaves):
                name = os.path.normpath(os.path.join(below, leaf.removesuffix(".j2")))
                path = os.path.join(tree["dest"], name)
                executable = os.access(os.path.join(root, leaf), os.X_OK)
                default = "0600" if secret else ("0755" if executable else "0644")
                files.append(
                    {
                        "path": path,
                        "content": self.render(os.path.join(root, leaf), path, task_vars),
                        "mode": str(tree.get("mode", default)),
                        **common,
                    }
                )
        return files, directories

    def render(self, source: str, path: str, task_vars: dict[str, Any]) -> str:
        """The text of one template; a file without ``.j2`` is taken as it is."""
        text = self._loader.get_text_file_contents(source)
        if not source.endswith(".j2"):
            return str(text)
        searchpath = [
            os.path.join(base, "templates") for base in task_vars.get("ansible_search_path", [])
        ]
        templar = self._templar.copy_with_new_env(
            searchpath=[os.path.dirname(source), *searchpath],
            available_variables={**task_vars, "template_destination": path},
        )
        try:
            rendered = templar.template(
                trust_as_template(text),
                escape_backslashes=False,
                overrides={"trim_blocks": True, "lstrip_blocks": True},
            )
        except AnsibleError as error:
            raise AnsibleActionFail(f"{os.path.relpath(source)}: {error}") from error
        if rendered is None:
            return ""
        if not isinstance(rendered, str):
            raise AnsibleActionFail(
                f"{os.path.relpath(source)} renders to a {type(rendered).__name__}, not to text: "
                "pass the value through a filter such as to_nice_json"
            )
        return rendered

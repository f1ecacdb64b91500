"""Action ``check_limit``: refuse a ``--limit`` whose names the inventory lacks."""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Mapping
from typing import Any

from ansible.inventory.manager import PATTERN_WITH_SUBSCRIPT, split_host_pattern
from ansible.plugins.action import ActionBase
from ansible_collections.prime_spark.fleet.plugins.plugin_utils.catalogue import prepared


def problems(limit: str, groups: Mapping[str, list[str]]) -> list[str]:
    """A sentence for each name or pattern in a limit that matches nothing of the inventory."""
    known = sorted({*groups, *groups["all"]})
    found = []
    for part in split_host_pattern(limit):
        name = part.lstrip("!&")
        if name.startswith("@"):
            continue  # A file of names, which Ansible reads.
        if subscript := None if name.startswith("~") else PATTERN_WITH_SUBSCRIPT.match(name):
            name = subscript[1]
        pattern = name[1:] if name.startswith("~") else fnmatch.translate(name)
        if any(re.match(pattern, one) for one in known):
            continue
        if re.search(r"^~|[*?[]", name):
            found.append(f"{name} matches no host and no group of the inventory")
            continue
        close = " or ".join(difflib.get_close_matches(name, known))
        hint = f"; did you mean {close}?" if close else ""
        found.append(f"{name} is neither a host nor a group of the inventory{hint}")
    return found


class ActionModule(ActionBase):
    """What it refuses stands in the documentation of the module."""

    TRANSFERS_FILES = False
    _requires_connection = False

    def run(
        self, tmp: str | None = None, task_vars: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        variables = task_vars or {}
        groups = variables["groups"]
        result["changed"] = False
        found = problems(variables.get("ansible_limit") or "", groups)
        lines = [f"--limit: {sentence}" for sentence in found]
        if not any(groups.get(name) for name in prepared()):
            names = " and ".join(prepared())
            lines.append(f"the inventory has no managed hosts: no host is in the groups {names}")
        if lines:
            result.update(failed=True, msg="\n".join([*lines, "No host was contacted."]))
        return result

"""Action side of ``role_seal``: make a key for each role, good for this one seal."""

from __future__ import annotations

import secrets
from typing import Any

from ansible.plugins.action import ActionBase
from ansible_collections.prime_spark.fleet.plugins.plugin_utils.plan import sealing_key


class ActionModule(ActionBase):
    """Takes ``run`` and ``roles``, a mapping of role to stamp."""

    TRANSFERS_FILES = False

    def run(
        self, tmp: str | None = None, task_vars: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        variables = task_vars or {}
        host = variables["inventory_hostname"]
        raw = variables["hostvars"].raw_get(host)
        entries = []
        for role, stamp in self._task.args["roles"].items():
            nonce = secrets.token_hex(16)
            key = sealing_key(raw, host, role, nonce)
            entries.append({"role": role, "stamp": stamp, "nonce": nonce, "key": key})
        arguments = {"run": self._task.args["run"], "roles": entries}
        result.update(self._execute_module(module_args=arguments, task_vars=task_vars))
        result.pop("invocation", None)
        for role, sentences in (result.get("unsealed") or {}).items():
            self._display.warning(
                f"{host}: {role} is not as this run left it a moment ago "
                f"({'; '.join(sentences)}): the next run plays it again"
            )
        return result

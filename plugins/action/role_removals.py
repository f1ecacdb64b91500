"""Action ``role_removals``: which roles leave which hosts; stop what nobody confirmed."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase
from ansible_collections.prime_spark.fleet.plugins.plugin_utils.catalogue import catalogue
from ansible_collections.prime_spark.fleet.plugins.plugin_utils.removals import removals, to_confirm


class ActionModule(ActionBase):
    """Arguments and results stand in the documentation of the module."""

    TRANSFERS_FILES = False
    _requires_connection = False

    def run(
        self, tmp: str | None = None, task_vars: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        variables = task_vars or {}
        hostvars = variables["hostvars"]
        recorded = {
            str(host): list(
                (hostvars.raw_get(host).get("host_precheck") or {}).get("recorded") or []
            )
            for host in variables["ansible_play_hosts"]
        }
        arguments = self._task.args
        roles = catalogue()
        order = [role for role, entry in roles.items() if entry.has_group]
        leaves = removals(recorded, variables["groups"], order)
        result.update(changed=False, leaves=leaves)
        data = {role for role, entry in roles.items() if entry.data}
        found = to_confirm(leaves, recorded, data, int(arguments["most"]))
        confirmed = {name.strip() for name in str(arguments["confirmed"]).split(",")}
        if found.keys() <= confirmed:
            return result
        option = f"-e confirm_removal={','.join(found)}"
        checking = bool(self._task.check_mode)
        lines = [f"REMOVAL  {sentence}" for sentence in found.values()]
        if checking:
            lines.append(f"REMOVAL  a run without --check stops here, unless it is given {option}")
        self._display.display("\n".join(lines), "bright purple" if checking else "red")
        if not checking:
            things = "1 role" if len(found) == 1 else f"{len(found)} roles"
            msg = (
                f"the inventory's groups say to remove {things}, see the lines above. Put the "
                f"hosts back into the groups, or confirm with {option}. Nothing was changed."
            )
            result.update(failed=True, msg=msg)
        return result

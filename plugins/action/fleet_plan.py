"""Action ``fleet_plan``: decide which roles a run plays on which hosts."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from typing import Any

from ansible import context
from ansible.plugins.action import ActionBase
from ansible_collections.prime_spark.fleet.plugins.plugin_utils.catalogue import catalogue
from ansible_collections.prime_spark.fleet.plugins.plugin_utils.plan import (
    Known,
    Plan,
    Selection,
    is_sealed,
)


class ActionModule(ActionBase):
    """Arguments and results stand in the documentation of the module."""

    TRANSFERS_FILES = False
    _requires_connection = False

    def run(
        self, tmp: str | None = None, task_vars: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        variables = task_vars or {}
        arguments = self._task.args
        selection = Selection(
            tags=list(variables["ansible_run_tags"]),
            skipped=list(variables["ansible_skip_tags"]),
            full=bool(arguments.get("full", False)),
            # Parts of the run may not take place.
            whole=not (context.CLIARGS.get("step") or context.CLIARGS.get("start_at_task")),
        )
        hosts = [str(host) for host in variables["ansible_play_hosts_all"]]
        refused = [host for host in hosts if self.precheck(variables, host).get("failed")]
        together = [role for role, entry in catalogue().items() if entry.together]
        plan = Plan(self.known(variables), selection, together, refused)
        lines = plan.lines()
        if arguments.get("show"):
            lines = plan.table(hosts)
            if path := arguments.get("file"):
                with open(path, "w", encoding="utf-8") as stream:
                    json.dump(plan.report(hosts), stream, indent=1)
                    stream.write("\n")
        if lines:
            self._display.display("\n".join(lines))
        return {
            **result,
            "changed": False,
            "run": uuid.uuid4().hex,
            # Without stamps (`--skip-tags validate`) nothing is known that could be left out.
            "everything": not self.stamps(variables),
            "due": plan.due,
            "played": plan.played,
            "state": plan.state,
        }

    @staticmethod
    def stamps(task_vars: Mapping[str, Any]) -> dict[str, Any]:
        """What validate_inventory worked out; empty where it did not run."""
        return dict((task_vars.get("inventory_validation") or {}).get("stamps") or {})

    @staticmethod
    def precheck(task_vars: Mapping[str, Any], host: str) -> dict[str, Any]:
        """What host_precheck returned for a host."""
        return dict(task_vars["hostvars"].raw_get(host).get("host_precheck") or {})

    def known(self, task_vars: Mapping[str, Any]) -> list[Known]:
        """What the inventory wants and the hosts have, for each role on each host of the run."""
        hostvars = task_vars["hostvars"]
        found = []
        for role, wanted in ActionModule.stamps(task_vars).items():
            for host in task_vars["ansible_play_hosts"]:
                if host not in wanted["hosts"]:
                    continue
                raw = hostvars.raw_get(host)
                seen = ActionModule.precheck(task_vars, host)
                drift = (seen.get("drift") or {}).get(role)
                sealed = drift is not None and is_sealed(raw, host, role, drift)
                found.append(
                    Known(
                        host=host,
                        role=role,
                        stamp=wanted["hosts"][host],
                        fact_names=tuple(wanted["facts"]),
                        facts={
                            name: (seen.get("ansible_facts") or {}).get(f"ansible_{name}")
                            for name in wanted["facts"]
                        },
                        recorded=drift["stamp"] if drift else None,
                        differences=tuple(drift["differences"]) if drift else (),
                        sealed=sealed,
                    )
                )
        return found

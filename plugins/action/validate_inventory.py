"""Action ``validate_inventory``: validate the whole inventory before any host is contacted."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from typing import Any

from ansible import __version__
from ansible.errors import AnsibleError
from ansible.plugins.action import ActionBase
from ansible.template import trust_as_template
from ansible.utils.vars import load_extra_vars
from ansible_collections.prime_spark.fleet.plugins.plugin_utils.addresses import listening
from ansible_collections.prime_spark.fleet.plugins.plugin_utils.catalogue import (
    ROOT,
    catalogue,
    check,
    load,
    prepared,
)
from ansible_collections.prime_spark.fleet.plugins.plugin_utils.fleet import SECRET, expected
from ansible_collections.prime_spark.fleet.plugins.plugin_utils.inventory import (
    Fleet,
    Role,
    validate,
)
from ansible_collections.prime_spark.fleet.plugins.plugin_utils.stamps import Sources, Stamps
from ansible_collections.prime_spark.fleet.plugins.plugin_utils.values import check_value
from ansible_collections.prime_spark.fleet.plugins.plugin_utils.wanted import wanted

MISSING = re.compile(r"'(\w+)' is undefined")


class ActionModule(ActionBase):
    """Results stand in the documentation of the module."""

    TRANSFERS_FILES = False
    _requires_connection = False

    def run(
        self, tmp: str | None = None, task_vars: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        variables = task_vars or {}
        fleet = self.fleet(variables)
        for role, entry in catalogue().items():
            found = fleet.roles.get(role, Role(role, {}, {}))
            check(ROOT, entry, found.options, found.defaults)
        validate(
            fleet,
            needs={role: entry.needs for role, entry in catalogue().items()},
            single=[role for role, entry in catalogue().items() if entry.single],
            secrets=self.gather(fleet, variables["hostvars"]),
            remedy=self.remedy(variables),
            prepared=prepared(),
        )
        # Shown once, a line each: Ansible repeats a failure's message and folds its lines.
        if lines := fleet.lines():
            self._display.display("\n".join(lines), "red" if fleet.refusals else "bright purple")
        result["changed"] = False
        if fleet.refusals:
            count = len(fleet.refusals)
            things = "1 mistake" if count == 1 else f"{count} mistakes"
            msg = f"the inventory has {things}, see the lines above; no host was contacted"
            result.update(failed=True, msg=msg)
        else:
            result["ports"] = listening(fleet, catalogue())
            result["wanted"] = wanted(fleet, catalogue(), result["ports"])
            result["stamps"] = self.stamps(fleet, variables)
        return result

    def stamps(self, fleet: Fleet, task_vars: Mapping[str, Any]) -> dict[str, Any]:
        """By role, ``hosts`` to stamps and the ``facts`` that have to be added to these."""
        groups, hostvars = task_vars["groups"], task_vars["hostvars"]

        def resolve(host: str, name: str) -> Any:
            try:
                templar = self._templar.copy_with_new_env(
                    available_variables={**fleet.raw[host], "hostvars": hostvars}
                )
                return templar.template(fleet.raw[host][name])
            except AnsibleError as error:
                return str(error)

        defaults = {role.name: role.defaults for role in fleet.roles.values()}
        stamps = Stamps(Sources(ROOT), fleet.raw, groups, defaults, __version__, resolve)
        found = {}
        for role, entry in catalogue().items():
            if hosts := sorted({h for group in entry.groups for h in groups.get(group, [])}):
                by_host, facts = stamps.of(role, hosts)
                found[role] = {"hosts": by_host, "facts": facts}
        return found

    def remedy(self, task_vars: Mapping[str, Any]) -> str:
        """The command that makes a secret, with the inventory's directory as one types it."""
        if "lab_directory" in task_vars:
            return "make lab-up"  # The lab's secrets lie beside its disks and come with them.
        directory = str(task_vars.get("inventory_dir") or "")
        below = os.path.relpath(directory) if directory else "…"
        return f"make secrets INVENTORY={directory if below.startswith('..') else below}"

    def fleet(self, task_vars: Mapping[str, Any]) -> Fleet:
        """Roles from their files, groups and variables from the inventory (and ``-e``)."""
        roles = {}
        for path in sorted((ROOT / "roles").iterdir()):
            options = load(path / "meta" / "argument_specs.yml")
            defaults = load(path / "defaults" / "main.yml")
            if options:
                main = options["argument_specs"]["main"]
                found = dict(main.get("options") or {})
                roles[path.name] = Role(path.name, found, dict(defaults or {}))
        groups = {
            name: sorted(hosts)
            for name, hosts in task_vars["groups"].items()
            if name not in ("all", "ungrouped")
        }
        hostvars = task_vars["hostvars"]
        raw = {host: dict(hostvars.raw_get(host)) for host in sorted(task_vars["groups"]["all"])}
        return Fleet(roles, groups, raw, set(load_extra_vars(self._loader)))

    def gather(self, fleet: Fleet, hostvars: Any) -> set[str]:
        """Fill ``fleet.values``; returns the names of the secrets that roles need."""
        secrets: set[str] = set()
        for host, raw in fleet.raw.items():
            fleet.values[host] = {}
            for role in fleet.roles.values():
                if host not in fleet.groups.get(role.name, []):
                    continue
                secrets |= set(re.findall(r"\b(vault_\w+)\b(?! \| default)", str(role.defaults)))
                defaults = {
                    key: trust_as_template(value) if isinstance(value, str) else tagged(value)
                    for key, value in role.defaults.items()
                }
                templar = self._templar.copy_with_new_env(
                    available_variables={**defaults, **raw, "hostvars": hostvars}
                )
                for name, option in role.options.items():
                    found = self.value(fleet, host, name, option, {**defaults, **raw}, templar)
                    if found is not UNUSABLE:
                        fleet.values[host][name] = found
        return secrets

    def value(
        self,
        fleet: Fleet,
        host: str,
        name: str,
        option: Mapping[str, Any],
        variables: Mapping[str, Any],
        templar: Any,
    ) -> Any:
        """One input as the role would see it, or ``UNUSABLE`` after a refusal."""
        if name not in variables:
            if option.get("required"):
                fleet.refuse(host, f"{name} is not set, expected {expected(option)}")
            return UNUSABLE
        try:
            value = templar.template(variables[name])
        except AnsibleError as error:
            found = MISSING.search(str(error))
            missing = found[1] if found else ""
            if missing.startswith("ansible_facts"):
                return UNUSABLE  # Only the host can tell.
            if missing.startswith("vault_"):
                fleet.missing.setdefault(missing, set()).add(f"{name} of {host}")
            elif not is_required(fleet, missing):
                # What a template was made of may be a secret.
                why = (
                    f"'{missing}' is undefined"
                    if missing
                    else "its template fails"
                    if SECRET.search(name)
                    else str(error).splitlines()[0]
                )
                fleet.refuse(host, f"{name} cannot be worked out: {why}")
            return UNUSABLE
        return value if check_value(fleet, host, name, option, value) else UNUSABLE


UNUSABLE = object()


def is_required(fleet: Fleet, name: str) -> bool:
    """Whether an input is named by a refusal of its own where it is not set."""
    return any(role.options.get(name, {}).get("required") for role in fleet.roles.values())


def tagged(value: Any) -> Any:
    """Mark every text within a default as a template of ours, as Ansible does for a role's file."""
    transform: Callable[[Any], Any] = tagged
    if isinstance(value, str):
        return trust_as_template(value)
    if isinstance(value, dict):
        return {key: transform(item) for key, item in value.items()}
    if isinstance(value, list):
        return [transform(item) for item in value]
    return value

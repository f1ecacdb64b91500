"""Names: of groups, which are roles, and of variables."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from .fleet import Fleet

# Variables of the inventory that belong to no role.
SHARED = (
    "images",
    "lab_directory",
    "lab_proxy",
    "precheck_disk_mb",
    "precheck_memory_mb",
)
# Variables that there were, and what to write instead.
DEVICES = (
    "every host of the group telemetry is a device, named by its telemetry_device_id; leave it "
    "out, and list devices that no host is in telemetry_other_devices"
)
RETIRED = {"exporters_devices": DEVICES, "monitoring_devices": DEVICES}
# Variables of plays: there an inventory's value has no effect.
PLAYS = {"verify_": "playbooks/verify.yml", "facts_": "playbooks/facts.yml"}


def check_groups(
    fleet: Fleet, single: list[str], needs: Mapping[str, list[str]], prepared: list[str]
) -> None:
    """Groups are roles: no misspelt ones, no host without any, everything needed is there."""
    for group in fleet.groups:
        close = difflib.get_close_matches(group, fleet.roles, n=1, cutoff=0.8)
        if group not in fleet.roles and close:
            fleet.refuse(group, f"no role is called like this group; did you mean {close[0]}?")
    for host in fleet.raw:
        if not any(host in fleet.groups.get(role, []) for role in fleet.roles):
            known = ", ".join(sorted(fleet.roles))
            fleet.refuse(host, f"is in no group that is a role, expected at least one of {known}")
        elif prepared and not any(host in fleet.groups.get(group, []) for group in prepared):
            fleet.refuse(
                host,
                f"is in none of the groups {', '.join(prepared)}, whose hosts a run prepares and "
                f"verifies; put it into a group below {prepared[0]}",
            )
    for role in single:
        if len(hosts := fleet.of(role)) > 1:
            names = ", ".join(hosts)
            fleet.refuse(role, f"the group has {len(hosts)} hosts ({names}), expected at most one")
    for role, needed in needs.items():
        hosts = fleet.of(role)
        for other in needed:
            here = other.removesuffix("@host")
            if other == here and hosts and not fleet.of(here):
                fleet.refuse(here, f"the group is empty, but {', '.join(hosts)} of {role} need it")
            elif other != here:
                for host in set(hosts) - set(fleet.of(here)):
                    fleet.refuse(
                        host, f"is in the group {role}, but not in {here}, which that needs"
                    )


def check_names(fleet: Fleet) -> None:
    """Refuse variables that look like a role's input and are none."""
    known = {name for role in fleet.roles.values() for name in role.options}
    for host, variables in fleet.raw.items():
        for name in variables:
            if name in known or name in SHARED or name.startswith(("ansible_", "vault_")):
                continue
            if sentence := name_problem(fleet, name, sorted(known)):
                fleet.refuse(host, sentence)


def name_problem(fleet: Fleet, name: str, known: list[str]) -> str:
    """Why a variable that is nobody's input cannot stay; empty where it is the owner's own."""
    if name in RETIRED:
        return f"{name} is no variable any more: {RETIRED[name]}"
    if name.startswith(tuple(f"__{role}_" for role in fleet.roles)):
        return f"{name} is internal to its role, an inventory cannot set it"
    roles = [role for role in fleet.roles if name.startswith(f"{role}_")]
    if roles:
        role = max(roles, key=len)
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
        hint = f"did you mean {close[0]}?" if close else f"see roles/{role}/meta/argument_specs.yml"
        return f"{name} is not a variable of role {role}; {hint}"
    for prefix, playbook in PLAYS.items():
        if name.startswith(prefix) and name not in fleet.typed:
            return f"{name} belongs to {playbook}, where the inventory's value has no effect"
    close = difflib.get_close_matches(name, [*known, *SHARED], n=1, cutoff=0.9)
    return f"{name} is no variable of any role; did you mean {close[0]}?" if close else ""

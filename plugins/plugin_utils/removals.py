"""Which roles leave which hosts, in which order, and what of that an operator has to confirm."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence


def removals(
    recorded: Mapping[str, Sequence[str]],
    groups: Mapping[str, Sequence[str]],
    order: Sequence[str],
) -> dict[str, list[str]]:
    """Host to the roles that it has and is no longer in the groups of, first to go first.

    ``recorded`` is host to the roles that left records there, ``order`` that of the plays: what
    stands on something else goes before it. Roles that are not in ``order`` never leave.
    """
    found = {}
    for host, roles in recorded.items():
        gone = [r for r in reversed(order) if r in roles and host not in groups.get(r, [])]
        if gone:
            found[host] = gone
    return found


def to_confirm(
    leaves: Mapping[str, Sequence[str]],
    recorded: Mapping[str, Sequence[str]],
    data: Collection[str],
    most: int,
) -> dict[str, str]:
    """Role to the sentence that says what its removal means, for every role to confirm.

    That is a role of ``data`` that leaves its last host: one that stays in the group has no record
    of it. And every role where more than ``most`` removals come together, counted by role and host.
    """
    hosts: dict[str, list[str]] = {}
    for host, roles in leaves.items():
        for role in roles:
            hosts.setdefault(role, []).append(host)
    many = sum(map(len, hosts.values())) > most
    found = {}
    for role, leaving in sorted(hosts.items()):
        stays = any(role in had and host not in leaving for host, had in recorded.items())
        sentence = f"{role} leaves {', '.join(leaving)}"
        if role in data and not stays:
            found[role] = f"{sentence}: no other host of this run has its data, which stays there"
        elif many:
            found[role] = sentence
    return found

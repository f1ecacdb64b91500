"""Which roles a run plays on which hosts, from what is wanted, known and asked for."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .stamps import with_facts

IN_SYNC = "in sync"
DRIFTED = "drifted"
OUTDATED = "outdated"
UNKNOWN = "unknown"
UNREACHABLE = "unreachable"
REFUSED = "refused"
# A sentence of the probe that names a doubt, not a difference.
UNSURE = "unsure: "
# Tags that select or leave out nothing of a role.
NEUTRAL = {"all", "always", "leftovers", "validate", "verify"}


def sealing_key(variables: Mapping[str, Any], host: str, role: str, nonce: str) -> str:
    """The key of one seal. It is made of the inventory's secrets, which no host knows all of."""
    secrets = sorted(
        (name, str(value))
        for name, value in variables.items()
        if name.startswith("vault_") and not name.endswith("_previous")
    )
    master = hashlib.sha256(repr(secrets).encode()).digest()
    return hmac.new(master, f"{host}\0{role}\0{nonce}".encode(), hashlib.sha256).hexdigest()


def is_sealed(variables: Mapping[str, Any], host: str, role: str, drift: Mapping[str, str]) -> bool:
    """Whether a manifest is the one that a run of this inventory wrote.

    ``drift`` has its nonce, digest and seal, as module_utils.state makes them.
    """
    key = sealing_key(variables, host, role, drift["nonce"])
    expected = hmac.new(key.encode(), drift["digest"].encode(), hashlib.sha256).hexdigest()
    return hmac.compare_digest(expected.encode(), str(drift["seal"]).encode())


@dataclass(frozen=True)
class Known:
    """One role on one host: what is wanted, and what the host's manifest says."""

    host: str
    role: str
    stamp: str
    fact_names: tuple[str, ...]
    facts: Mapping[str, Any]
    recorded: str | None
    differences: tuple[str, ...]
    sealed: bool

    @property
    def wanted(self) -> str:
        """The stamp that the manifest has to have."""
        return with_facts(self.stamp, self.fact_names, self.facts)

    def state(self) -> tuple[str, list[str]]:
        """One of the words above, and why."""
        if self.recorded is None:
            return UNKNOWN, ["no run has recorded it here yet"]
        if not self.sealed:
            return OUTDATED, ["its record was made with other secrets, or changed"]
        differences = [text for text in self.differences if not text.startswith(UNSURE)]
        if differences:
            return DRIFTED, differences
        if self.recorded != self.wanted:
            return OUTDATED, ["what decides about it has changed since the last run"]
        return IN_SYNC, [text.removeprefix(UNSURE) for text in self.differences]


@dataclass(frozen=True)
class Selection:
    """What the operator asked for: tags, tags to skip, everything, and whether nothing is skipped
    within a run."""

    tags: list[str]
    skipped: list[str]
    full: bool
    whole: bool

    def plays(self, role: str) -> tuple[bool, bool]:
        """Whether the role is asked for, and whether as a whole."""
        tags, skipped = set(self.tags), set(self.skipped)
        if role in skipped:
            return False, False
        if "all" in tags or role in tags:
            parts = skipped - NEUTRAL
            return True, self.whole and not parts
        # A part of the role, or a tag that only Ansible can tell what it selects.
        part = any(tag.startswith(f"{role}_") for tag in tags)
        return part or bool(tags & {"tagged", "untagged", "never"}), False


class Plan:
    """Attributes: ``due`` (role to hosts on which it is played), ``played`` (host to role to the
    stamp to seal it with), ``state`` (host to role to ``state`` and ``why``)."""

    def __init__(
        self,
        known: list[Known],
        selection: Selection,
        together: list[str],
        refused: Iterable[str] = (),
    ) -> None:
        """``together``: roles played on all of their hosts or on none; ``refused``: hosts that the
        checks before a run refuse."""
        self.refused = set(refused)
        self.due: dict[str, list[str]] = {}
        self.played: dict[str, dict[str, str]] = {}
        self.state: dict[str, dict[str, dict[str, Any]]] = {}
        for entry in known:
            state, why = entry.state()
            self.state.setdefault(entry.host, {})[entry.role] = {"state": state, "why": why}
            asked, whole = selection.plays(entry.role)
            self.due.setdefault(entry.role, [])
            if not asked:
                continue
            unsure = bool(why)
            if selection.full or not whole or state != IN_SYNC or unsure:
                self.due[entry.role].append(entry.host)
        for entry in known:
            asked, whole = selection.plays(entry.role)
            due = self.due[entry.role]
            # Its hosts tell each other something, so that one alone is not enough.
            if asked and due and entry.role in together and entry.host not in due:
                due.append(entry.host)
            if whole and entry.host in due:
                self.played.setdefault(entry.host, {})[entry.role] = entry.wanted

    def lines(self) -> list[str]:
        """What a run says before it plays: a line for each host that drifted."""
        found = []
        for host, roles in self.state.items():
            for role, entry in roles.items():
                if entry["state"] == DRIFTED and host in self.due.get(role, []):
                    found.append(f"DRIFTED  {host}: {role}: {shortened(entry['why'])}")
        return found

    def table(self, hosts: list[str]) -> list[str]:
        """Every role of every host, those in sync in one line a host."""
        width = max(map(len, hosts), default=0)
        roles = max((len(role) for found in self.state.values() for role in found), default=0)
        lines = [f"{'HOST':<{width}}  {'ROLE':<{roles}}  STATE"]
        for host in hosts:
            found = self.state.get(host)
            if found is None:
                lines.append(f"{host:<{width}}  {'-':<{roles}}  {self.missing(host)}")
                continue
            for role, entry in found.items():
                if entry["state"] != IN_SYNC or entry["why"]:
                    why = "; ".join(entry["why"])
                    lines.append(f"{host:<{width}}  {role:<{roles}}  {entry['state']}: {why}")
            count = sum(entry["state"] == IN_SYNC for entry in found.values())
            lines.append(f"{host:<{width}}  {f'{count} of {len(found)}':<{roles}}  {IN_SYNC}")
        return lines

    def report(self, hosts: list[str]) -> dict[str, Any]:
        """As `table`, for programs: ``hosts`` (name to ``state`` and ``roles``) and ``summary``."""
        found = {host: self.host_report(host) for host in hosts}
        states = [entry["state"] for entry in found.values()]
        return {
            "hosts": found,
            "summary": {state: states.count(state) for state in sorted(set(states))},
        }

    def missing(self, host: str) -> str:
        """Why nothing is known of a host."""
        return REFUSED if host in self.refused else UNREACHABLE

    def host_report(self, host: str) -> dict[str, Any]:
        """A host's state is the worst of its roles'."""
        if host not in self.state:
            return {"state": self.missing(host), "roles": {}}
        roles = self.state[host]
        seen = {entry["state"] for entry in roles.values()}
        worst = next((s for s in (DRIFTED, OUTDATED, UNKNOWN) if s in seen), IN_SYNC)
        return {"state": worst, "roles": roles}


def shortened(why: list[str], most: int = 4) -> str:
    """The first reasons, and how many more there are."""
    more = f"; and {len(why) - most} more" if len(why) > most else ""
    return "; ".join(why[:most]) + more

"""The inventory as it is checked, and what is said of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SECRET = re.compile(r"(password|passphrase|seed|token|secret)s?$|_users$")


@dataclass
class Role:
    """A role as its files describe it."""

    name: str
    options: dict[str, dict[str, Any]]
    defaults: dict[str, Any]


@dataclass
class Fleet:
    """What is checked: ``values[host][variable]`` are the inputs of the roles that the host has.

    ``raw`` is what the inventory and ``-e`` say, templates not resolved; ``typed`` are the names
    that ``-e`` sets.
    """

    roles: dict[str, Role]
    groups: dict[str, list[str]]
    raw: dict[str, dict[str, Any]]
    typed: set[str] = field(default_factory=set)
    values: dict[str, dict[str, Any]] = field(default_factory=dict)
    refusals: list[tuple[str, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    # Secret to the inputs that need it and cannot have it.
    missing: dict[str, set[str]] = field(default_factory=dict)

    def refuse(self, where: str, sentence: str) -> None:
        if (where, sentence) not in self.refusals:
            self.refusals.append((where, sentence))

    def of(self, role: str) -> list[str]:
        """The hosts that really get the role."""
        return [
            host
            for host in self.groups.get(role, [])
            if self.values.get(host, {}).get(f"{role}_state", "present") != "absent"
        ]

    def lines(self) -> list[str]:
        """One line for each refusal, then for each warning."""
        width = max((len(where) for where, _ in self.refusals), default=0)
        found = [
            f"REFUSED  {where + ':':<{width + 1}} {text}" for where, text in sorted(self.refusals)
        ]
        return found + [f"WARNING  {text}" for text in self.warnings]


def shown(name: str, value: Any) -> str:
    """A value for a message; of a secret only that it is there."""
    if SECRET.search(name):
        return "a value that is not shown"
    text = repr(value)
    return text if len(text) <= 80 else text[:79] + "…"


def expected(option: Mapping[str, Any]) -> str:
    """What a specification asks for, in words."""
    if option.get("choices"):
        return "one of " + ", ".join(map(str, option["choices"]))
    words = {"str": "a text", "int": "a whole number", "bool": "true or false", "path": "a path"}
    words |= {"list": "a list", "dict": "a mapping", "float": "a number"}
    kind = words.get(str(option.get("type")), str(option.get("type")))
    elements = {"str": "texts", "dict": "mappings", "int": "whole numbers"}
    if option.get("type") == "list" and option.get("elements") in elements:
        kind += f" of {elements[option['elements']]}"
    return kind

"""What is known about each role: ``meta/fleet.yml``, and its play in ``playbooks/site.yml``."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from ansible.errors import AnsibleError

ROOT = Path(__file__).resolve().parents[2]
# In C where there is one: the files of all roles are read at the start of every run.
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
SITE = "playbooks/site.yml"
PREFIX = "prime_spark.fleet."


@dataclass(frozen=True)
class Entry:
    """A role as the fleet sees it. The fields with a default are the keys of ``meta/fleet.yml``.

    ``role`` and ``groups``, whose hosts its play covers, are read of site.yml; ``credentials``,
    whether it proves rotations, follows from the file ``tasks/credentials.yml``.
    """

    role: str
    groups: list[str]
    credentials: bool
    # Roles that it needs in the fleet; `name@host`: on the same host.
    needs: list[str] = field(default_factory=list)
    # Whether one host at most may have it: others find it by its group.
    single: bool = False
    # Whether it is played on all of its hosts or on none.
    together: bool = False
    # What runs on a host. Instead of a list, a mapping: name to groups, of which the host has to be
    # in one.
    units: dict[str, list[str]] = field(default_factory=dict)
    projects: dict[str, list[str]] = field(default_factory=dict)
    # Its Python services, for rollback.yml.
    services: list[str] = field(default_factory=list)
    # `job`, the name of the `endpoint`, the `group` that the host has to be in as well, and
    # `only_prometheus`: whether the VPN guard keeps everybody else from it.
    scrape: list[dict[str, Any]] = field(default_factory=list)
    # Paths, or the role's variables for them: what only a purge removes.
    data: list[str] = field(default_factory=list)
    data_note: str = ""

    @property
    def has_group(self) -> bool:
        """Whether a group decides who gets the role; else every managed host does."""
        return self.role in self.groups


def load(path: Path) -> Any:
    """The content of a YAML file; nothing for a file that is not there."""
    try:
        return yaml.load(path.read_bytes(), Loader=LOADER) if path.exists() else None
    except yaml.YAMLError as error:
        raise AnsibleError(f"{path}: this is no YAML: {' '.join(str(error).split())}") from error


def options_of(root: Path, role: str) -> dict[str, Any]:
    """The options of a role's argument specification."""
    specs = load(root / "roles" / role / "meta" / "argument_specs.yml") or {}
    return specs.get("argument_specs", {}).get("main", {}).get("options") or {}


def strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def per_group(value: Any) -> bool:
    return strings(value) or (isinstance(value, dict) and all(map(strings, value.values())))


def scraped(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(item, dict)
        and {"job", "endpoint"} <= item.keys() <= {"job", "endpoint", "group", "only_prometheus"}
        and isinstance(item.get("only_prometheus", True), bool)
        and strings([part for key, part in item.items() if key != "only_prometheus"])
        for item in value
    )


SCRAPED = "a list of mappings with job, endpoint and, where needed, group and only_prometheus"
LIST = (strings, "a list of strings")
FLAG = (lambda value: isinstance(value, bool), "true or false")
PER_GROUP = (per_group, "a list of names, or a mapping of each to a list of groups")
KEYS = {
    "needs": LIST,
    "single": FLAG,
    "together": FLAG,
    "units": PER_GROUP,
    "projects": PER_GROUP,
    "services": LIST,
    "scrape": (scraped, SCRAPED),
    "data": LIST,
    "data_note": (lambda value: isinstance(value, str), "a string"),
}


def plays(root: Path) -> dict[str, list[str]]:
    """Role to the groups of its play, in the order of the plays."""
    found = {}
    for play in load(root / SITE):
        if not play.get("roles"):
            continue
        where = f"{root / SITE}: the play {play.get('name', 'without a name')} has"
        hosts, roles = play.get("hosts"), play["roles"]
        if not isinstance(hosts, str) or not re.fullmatch(r"\w+(:\w+)*", hosts):
            raise AnsibleError(f"{where} hosts: {hosts}, expected a group, or several as one:two")
        for entry in roles if isinstance(roles, list) else [roles]:
            name = str(entry.get("role")) if isinstance(entry, dict) else ""
            role = name.removeprefix(PREFIX)
            if role == name or role not in (entry.get("tags") or []):
                form = f"{{role: {PREFIX}NAME, tags: [NAME]}}"
                raise AnsibleError(f"{where} the role {entry}, expected {form}")
            found[role] = hosts.split(":")
    return found


def read(root: Path) -> dict[str, Entry]:
    """The entry of every role, in the order of the plays."""
    found = {}
    order = plays(root)
    for directory in sorted((root / "roles").iterdir()):
        path = directory / "meta" / "fleet.yml"
        # A role that others import has no state of its own.
        if directory.name not in order and (
            path.exists() or f"{directory.name}_state" in options_of(root, directory.name)
        ):
            raise AnsibleError(f"{path}: no play of {SITE} has this role, add a play for it")
    known = {group for groups in order.values() for group in groups}
    for role, groups in order.items():
        directory = root / "roles" / role
        path = directory / "meta" / "fleet.yml"
        if not path.exists():
            expected = "write it, with {} where there is nothing to say"
            raise AnsibleError(f"{path} is missing, and {SITE} has a play of this role: {expected}")
        content = load(path)
        if not isinstance(content, dict):
            raise AnsibleError(f"{path}: expected a mapping, {{}} where there is nothing to say")
        for key, value in content.items():
            if key not in KEYS:
                raise AnsibleError(f"{path}: {key} is unknown, expected {', '.join(KEYS)}")
            fits, expected = KEYS[key]
            if not fits(value):
                raise AnsibleError(f"{path}: {key} is {value!r}, expected {expected}")
        for other in content.get("needs", []):
            if other.removesuffix("@host") not in order:
                raise AnsibleError(f"{path}: needs has {other}, which is no role of {SITE}")
            if other.removesuffix("@host") == role:
                raise AnsibleError(f"{path}: needs has {other}, which is the role itself")
        for key in ("units", "projects"):
            if isinstance(content.get(key), list):
                content[key] = {name: [] for name in content[key]}
        named = {
            "units": [group for part in content.get("units", {}).values() for group in part],
            "projects": [group for part in content.get("projects", {}).values() for group in part],
            "scrape": [item["group"] for item in content.get("scrape", []) if "group" in item],
        }
        for key, names in named.items():
            for group in names:
                if group not in known:
                    raise AnsibleError(f"{path}: {key} has the group {group}, which is no play's")
        found[role] = Entry(role, groups, (directory / "tasks/credentials.yml").exists(), **content)
    return found


def check(
    root: Path, entry: Entry, options: Mapping[str, Any], defaults: Mapping[str, Any]
) -> None:
    """Refuse a role that has not what its entry says, or not what a removal tells it.

    ``options`` are those of its argument specification. Not a part of ``read``, since many
    processes of a run do that, and need not read all files of all roles.
    """
    role = entry.role
    path = root / "roles" / role / "meta" / "fleet.yml"
    for scraped in entry.scrape:
        if f"{scraped['endpoint']}_port" not in defaults:
            lacks = f"the role has no default {scraped['endpoint']}_port"
            raise AnsibleError(
                f"{path}: scrape has the endpoint {scraped['endpoint']}, but {lacks}"
            )
    for place in entry.data:
        if not place.startswith("/") and place not in defaults:
            neither = "neither an absolute path nor one of the role's defaults"
            raise AnsibleError(f"{path}: data has {place}, which is {neither}")
    text = tasks_of(root, role)
    for name in entry.services:
        if not re.search(
            rf"\b(?:python_service_name|service): +{re.escape(name)}$", text, re.MULTILINE
        ):
            raise AnsibleError(f"{path}: services has {name}, which no task of the role installs")
    specs = path.with_name("argument_specs.yml")
    if (options.get(f"{role}_state") or {}).get("choices") != ["present", "absent"]:
        expected = "with the choices present and absent, by which it is removed"
        raise AnsibleError(f"{specs}: expected the option {role}_state {expected}")
    if entry.data and f"{role}_purge" not in options:
        expected = "as fleet.yml says that it has data"
        raise AnsibleError(f"{specs}: expected the option {role}_purge, {expected}")
    for name in (f"{role}_state", *([f"{role}_purge"] if entry.data else [])):
        if not re.search(rf"\b{name}\b", text):
            raise AnsibleError(f"{root / 'roles' / role / 'tasks'}: no task looks at {name}")


def tasks_of(root: Path, role: str) -> str:
    """The text of a role's tasks and of the variables that these use."""
    directory = root / "roles" / role
    paths = [*directory.glob("tasks/**/*.yml"), *directory.glob("vars/**/*.yml")]
    return "\n".join(path.read_text(encoding="utf-8") for path in paths)


@cache
def catalogue() -> dict[str, Entry]:
    """The entries of this repository's roles."""
    return read(ROOT)


def removable(role: str) -> str:
    """The name of a role whose tasks know how to remove it; others are refused."""
    defaults = load(ROOT / "roles" / role / "defaults" / "main.yml")
    check(ROOT, catalogue()[role], options_of(ROOT, role), defaults or {})
    return role


def prepared() -> list[str]:
    """The groups whose hosts every run prepares."""
    return next(entry.groups for entry in catalogue().values() if not entry.has_group)


def of_groups(names: Collection[str], what: str) -> list[str]:
    """Of the roles among a host's groups, ``what`` of ``Entry`` there is, in the order of plays.

    ``roles`` are their names, ``credentials`` the names of those that prove rotations. The group
    C(all) has every role.
    """
    found: list[str] = []
    for role, entry in catalogue().items():
        if role not in names and "all" not in names:
            continue
        if what == "roles":
            found.append(role)
        elif what == "credentials":
            found += [role] * entry.credentials
        elif what == "services":
            found += entry.services
        else:
            parts: dict[str, list[str]] = {"units": entry.units, "projects": entry.projects}[what]
            found += [name for name, groups in parts.items() if not groups or {*groups} & {*names}]
    return found


def data_of(role: str, values: Mapping[str, Any]) -> str:
    """Where a role keeps data on a host with these variables, in words; empty where it has none."""
    entry = catalogue()[role]
    defaults = load(ROOT / "roles" / role / "defaults" / "main.yml") or {}
    places = [
        place if place.startswith("/") else str(values.get(place, defaults.get(place)))
        for place in entry.data
    ]
    return ", ".join(places) + (f" ({entry.data_note})" if entry.data_note else "")

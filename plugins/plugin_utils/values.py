"""Single values: against their specification, and against what their names promise."""

from __future__ import annotations

import copy
import json
import os
import re
from collections.abc import Mapping
from typing import Any

from ansible.module_utils.common.arg_spec import ArgumentSpecValidator

from .fleet import SECRET, Fleet, expected, shown

# name[:port]/path[:tag][@digest], as container runtimes read it.
IMAGE = re.compile(
    r"^[a-z0-9][\w.-]*(:\d+)?(/[a-z0-9][\w.-]*)*(:[\w][\w.-]*)?(@sha256:[0-9a-f]{64})?$"
)
SYSTEM_DIRECTORIES = {
    "/", "/bin", "/boot", "/dev", "/etc", "/home", "/lib", "/mnt", "/opt", "/proc", "/root", "/run",
    "/sbin", "/srv", "/sys", "/tmp", "/usr", "/var",
}  # fmt: skip
# What a Linux interface takes for IPv4, and IPv6 needs, to an Ethernet jumbo frame.
MTU = range(1280, 9001)
# Of none of these there may be none. A limit of no connections locks everybody out, SSH included.
POSITIVE = ("_seconds", "_ms", "_bytes", "_records", "_connections")


def check_value(fleet: Fleet, host: str, name: str, option: Mapping[str, Any], value: Any) -> bool:
    """Hold one value against its specification; says whether it can be used further on."""
    if value is None or (value == "" and option.get("required")):
        fleet.refuse(host, f"{name} is empty, expected {expected(option)}")
        return False
    if option.get("type") == "bool" and not isinstance(value, bool):
        extra = (
            f"; on the command line: -e '{{\"{name}\": true}}'" if isinstance(value, str) else ""
        )
        fleet.refuse(host, f"{name} is {shown(name, value)}, expected true or false{extra}")
        return False
    # Ansible would make a text of a mapping, and a list of a text's parts; a role would then see
    # the mapping, or the text's characters.
    unlike = {"str": (bool, dict, list), "path": (bool, dict, list), "int": (bool,)}
    wanted = {"list": list, "dict": dict}
    kind = str(option.get("type"))
    if isinstance(value, unlike.get(kind, ())) or not isinstance(value, wanted.get(kind, object)):
        fleet.refuse(host, f"{name} is {shown(name, value)}, expected {expected(option)}")
        return False
    spec = {name: {key: option[key] for key in option if key not in ("description", "default")}}
    # It writes into mappings within a value.
    result = ArgumentSpecValidator(spec).validate(copy.deepcopy({name: value}))
    if result.error_messages:
        detail = ""
        if isinstance(value, (dict, list)) and not SECRET.search(name):
            detail = f" ({result.error_messages[0]})"
        fleet.refuse(host, f"{name} is {shown(name, value)}, expected {expected(option)}{detail}")
        return False
    if found := another_type(value, result.validated_parameters[name]):
        fleet.refuse(host, type_problem(fleet, name, value, *found))
        return False
    return True


def another_type(given: Any, wanted: Any, place: str = "") -> tuple[str, Any, Any] | None:
    """Where within a value, what, and what Ansible makes of it, where that is of another type.

    It would do so for a module; a role's templates and services see what was given.
    """
    if isinstance(given, dict) and isinstance(wanted, dict):
        pairs = [(given[key], wanted.get(key), str(key)) for key in given]
    elif isinstance(given, list) and isinstance(wanted, list):
        pairs = [(mine, other, place) for mine, other in zip(given, wanted, strict=True)]
    else:
        for kind in (bool, str, (int, float)):
            if isinstance(wanted, kind):
                return None if isinstance(given, kind) else (place, given, wanted)
        return None
    return next((found for pair in pairs if (found := another_type(*pair))), None)


def type_problem(fleet: Fleet, name: str, whole: Any, place: str, given: Any, wanted: Any) -> str:
    """What to write instead of a value that is of another type than its specification says."""
    kind = "a text" if isinstance(wanted, str) else "a number"
    if isinstance(wanted, bool):
        kind = "true or false"
    if SECRET.search(name):
        return f"{name} is {shown(name, whole)}, expected {kind}"
    seen = f"the text {given!r}" if isinstance(given, str) else f"the number {given}"
    hint = ": in quotes" if isinstance(wanted, str) else ": no quotes"
    if name in fleet.typed and whole is given:
        hint = f"; on the command line: -e '{json.dumps({name: wanted})}'"
    return f"{name}{place and f': {place}'} is {seen}, expected {kind}{hint}"


def check_number(fleet: Fleet, host: str, name: str, value: int) -> None:
    """Ports, durations and sizes have ranges that their names tell; none is negative."""
    if name.endswith("_port") and not 1 <= value <= 65535:
        fleet.refuse(host, f"{name} is {value}, expected a port between 1 and 65535")
    elif name.endswith("_mtu") and value not in MTU:
        fleet.refuse(host, f"{name} is {value}, expected {MTU[0]} to {MTU[-1]} bytes")
    elif name.endswith(POSITIVE) and value < 1:
        fleet.refuse(host, f"{name} is {value}, expected at least 1")
    elif value < 0:
        fleet.refuse(host, f"{name} is {value}, expected no negative number")


def is_optional(fleet: Fleet, name: str) -> bool:
    """Whether a role's own default for an input may come out empty."""
    return any("default('')" in str(role.defaults.get(name)) for role in fleet.roles.values())


def check_values(fleet: Fleet) -> None:
    """Ranges, image references and paths of every host's inputs."""
    unpinned: dict[str, str] = {}
    for host, values in fleet.values.items():
        for name, value in values.items():
            if isinstance(value, int) and not isinstance(value, bool):
                check_number(fleet, host, name, value)
            # Empty is no mistake where the role does without: it says so with a default of ''.
            if name.endswith("_image") and not (value == "" and is_optional(fleet, name)):
                if not IMAGE.match(str(value)):
                    fleet.refuse(host, f"{name} is {value!r}, expected NAME:TAG@sha256:DIGEST")
                elif "@" not in value:
                    unpinned.setdefault(str(value), name)
            # What a role may own, empty or remove with its state or purge.
            if name.endswith(("_mount_point", "_data_directory")):
                example = "/mnt/nas" if name.endswith("_mount_point") else "/var/lib/prime-spark/…"
                clean = os.path.normpath(str(value))
                if not clean.startswith("/") or clean in SYSTEM_DIRECTORIES:
                    fleet.refuse(
                        host, f"{name} is {value!r}, expected a directory such as {example}"
                    )
    if unpinned:
        listed = ", ".join(f"{name} {image}" for image, name in sorted(unpinned.items()))
        fleet.warnings.append(
            f"without a digest an image can become another one at any time: {listed}; "
            "`make pin-images` writes the digests"
        )

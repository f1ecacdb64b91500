"""What the modules of a role note about what they brought up, until the run seals it.

A role's modules call `note`. When the role has been played to its end, `role_seal` turns the notes
and the records of the role's trees into its manifest, ``ROLE_DIR/<role>.json``: see
module_utils.state. Only what was noted in the same run counts, so that a package which a role no
longer wants is not missed for ever.
"""

from __future__ import annotations

import json
import os
from typing import Any

from ansible_collections.prime_spark.fleet.plugins.module_utils.atomic import replace_file

ROLE_DIR = "/var/lib/prime-spark/roles"
# Gone after a boot, and rightly: what a run noted before it is not sealed by one after it.
NOTES_DIR = "/run/prime-spark/roles"

# Set by the action plugins: the role that the operator knows, and the run's identifier.
OWNER_ARGUMENTS: dict[str, dict[str, Any]] = {
    "role": {"type": "str", "default": ""},
    "run": {"type": "str", "default": ""},
}


def manifest_path(role: str, directory: str = ROLE_DIR) -> str:
    """Where the manifest of a role lies."""
    return os.path.join(directory, f"{role}.json")


def notes_path(role: str, directory: str = NOTES_DIR) -> str:
    """Where a role's notes lie until they are sealed."""
    return os.path.join(directory, f"{role}.notes")


def load(path: str) -> dict[str, Any]:
    """A JSON object of ours; empty where there is none, or one that cannot be read."""
    try:
        with open(path, encoding="utf-8") as stream:
            content = json.load(stream)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def write_private(path: str, content: dict[str, Any]) -> None:
    """Replace a JSON file in one step, for root alone: notes may hold what a database is asked."""
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    replace_file(path, json.dumps(content, indent=1, sort_keys=True))


def note(
    params: dict[str, Any], kind: str, things: dict[str, Any], directory: str = NOTES_DIR
) -> None:
    """Note things of one kind, by name, with what the probe needs to look at them.

    ``params`` are the module's, with ``role`` and ``run``. Outside a run that seals nothing is
    noted.
    """
    role, run = params.get("role") or "", params.get("run") or ""
    if not role or not run:
        return
    path = notes_path(role, directory)
    notes = load(path)
    if notes.get("run") != run:
        notes = {"run": run, "things": {}}
    notes["things"].setdefault(kind, {}).update(things)
    write_private(path, notes)


def unseal(role: str, directory: str = ROLE_DIR) -> None:
    """Drop a role's manifest: something of the role is about to change, or was not as it should."""
    path = manifest_path(role, directory)
    if role and os.path.exists(path):
        os.unlink(path)

#!/usr/bin/python
"""Ansible module: write a whole tree of configuration and bring its consumers up to date."""

from __future__ import annotations

DOCUMENTATION = r"""
module: config_tree
short_description: Write a set of files, then apply them and restart their units when they differ
description:
  - Compares, validates and writes all files of one owner in a single remote run, and removes the
    files that it wrote earlier and that are no longer wanted.
  - Restarts on difference, not on event. A file that was changed behind the run's back is such a
    difference, too, since what was started meanwhile may have read it.
  - A fingerprint of everything the consumers see is recorded
    after they came up healthy; while it differs from what is wanted, every run applies again. A
    restart that an interrupted run still owed is therefore made up for by the next one.
  - A tree that fails to come up goes back; the files, links and units that were there before are
    restored, the task fails with the reason, and the next run tries again. A tree that never worked
    stays as it is.
  - Two runs never work on one tree at the same time; the second waits for the first.
  - Use it through the action plugin of the same name, which renders C(trees) from templates.
extends_documentation_fragment:
  - prime_spark.fleet.tree
  - prime_spark.fleet.tree.owned
  - prime_spark.fleet.tree.role
options:
  name:
    description: Name of the tree, unique on the host; the record's file name.
    type: str
    required: true
  state:
    description: V(absent) stops and disables the units and removes the files that were written, the
      directories that are empty then, and O(absent). O(apply) runs afterwards.
    type: str
    choices: [present, absent]
    default: present
  links:
    description: Symbolic links C(path) to C(target), switched atomically and switched back when the
      health gate fails.
    type: list
    elements: dict
    default: []
  apply:
    description: Commands (argument lists) to run when the fingerprint differs, before the units.
    type: list
    elements: list
    default: []
  units:
    description: Names of systemd units to enable, start, and restart when the fingerprint differs.
    type: list
    elements: str
    default: []
  fingerprint:
    description: Anything else whose change has to restart the units.
    type: str
    default: ""
  needs:
    description: Programs that the validators look for. Check mode on a host that has not got them
      yet leaves the validation to the run, and says so.
    type: list
    elements: path
    default: []
  loaded:
    description: Commands (argument lists) that print what the units have loaded into the kernel.
      The units are restarted when one prints something else than after their last start.
    type: list
    elements: list
    default: []
  health:
    description: Gate after a start. C(url) has to answer 200, within C(timeout) seconds.
    type: dict
"""

EXAMPLES = r"""
- name: Configure and run the time server
  config_tree:
    name: chrony
    trees:
      - {src: etc, dest: /etc/chrony, purge: false}
    validate:
      - [chronyd, -p, -f, "{stage}/etc/chrony/chrony.conf"]
    units: [chrony.service]
"""

RETURN = r"""
changes:
  description: One sentence for each change.
  type: list
  elements: str
  returned: always
restarted:
  description: The units that were restarted, or would be.
  type: list
  elements: str
  returned: always
"""

import os
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.prime_spark.fleet.plugins.module_utils.atomic import replace_link
from ansible_collections.prime_spark.fleet.plugins.module_utils.notes import note
from ansible_collections.prime_spark.fleet.plugins.module_utils.process import attempt
from ansible_collections.prime_spark.fleet.plugins.module_utils.tree import (
    TREE_ARGUMENTS,
    Tree,
    TreeError,
    TreeModule,
    is_there,
    remove_path,
    unit_files,
)
from ansible_collections.prime_spark.fleet.plugins.module_utils.undo import (
    Snapshot,
    discard_rollback,
    locked,
    save_rollback,
)
from ansible_collections.prime_spark.fleet.plugins.module_utils.units import (
    journal,
    printed,
    run,
    unit_states,
    wait_healthy,
)

ARGUMENTS: dict[str, dict[str, Any]] = {
    **TREE_ARGUMENTS,
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "links": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "path": {"type": "path", "required": True},
            "target": {"type": "path", "required": True},
        },
    },
    "apply": {"type": "list", "elements": "list", "default": []},
    "units": {"type": "list", "elements": "str", "default": []},
    "fingerprint": {"type": "str", "default": ""},
    "needs": {"type": "list", "elements": "path", "default": []},
    "loaded": {"type": "list", "elements": "list", "default": []},
    "health": {
        "type": "dict",
        "options": {
            "url": {"type": "str", "required": True},
            "timeout": {"type": "int", "default": 60},
            "absent": {"type": "list", "elements": "str", "default": []},
        },
    },
}


def link_target(path: str) -> str | None:
    return os.readlink(path) if os.path.islink(path) else None


def present(module: AnsibleModule, tree: Tree) -> dict[str, Any]:
    params = module.params
    found = tree.difference()
    links = {
        link["path"]: link["target"]
        for link in params["links"]
        if link_target(link["path"]) != link["target"]
    }
    extra = params["fingerprint"] + "".join(
        f"{lk['path']}>{lk['target']}" for lk in params["links"]
    )
    wanted = tree.fingerprint(extra)
    units: list[str] = params["units"]
    ours = unit_files([file.path for file in tree.files])
    states = unit_states(list(dict.fromkeys([*units, *ours])))
    unread = [unit for unit, seen in states.items() if seen.get("NeedDaemonReload") == "yes"]
    loaded = tree.record.get("loaded") or {}
    unloaded = [
        words for argv in params["loaded"] if loaded.get(words := " ".join(argv)) != printed(argv)
    ]
    # What changed a unit of ours since systemd read it may be what runs.
    stale = (
        tree.record.get("applied") != wanted
        or found.disturbs()
        or bool(unloaded)
        or bool(set(unread) & set(ours))
    )
    acting = bool(units or params["apply"])
    down = [
        unit
        for unit in units
        if states.get(unit, {}).get("ActiveState") not in ("active", "reloading")
    ]
    disabled = [
        unit
        for unit in units
        if states.get(unit, {}).get("UnitFileState") not in ("enabled", "static", "indirect")
    ]
    restart = units if stale else down

    changes = found.sentences() + [f"link {path} -> {target}" for path, target in links.items()]
    changes += [f"read {unit} again" for unit in unread]
    changes += [f"enable {unit}" for unit in disabled]
    changes += [f"restart {unit}" for unit in restart]
    if stale and params["apply"]:
        changes.append("apply: " + "; ".join(" ".join(argv) for argv in params["apply"]))
    result = {
        "changed": bool(changes),
        "changes": changes,
        "restarted": restart,
        "diff": tree.diff(found),
    }
    lacking = [path for path in params["needs"] if not os.path.exists(path)]
    if module.check_mode and lacking:
        result["changes"] = [*changes, f"deferred: validation needs {', '.join(lacking)}"]
    else:
        tree.validate()
    if module.check_mode:
        return result
    if not changes:
        record_applied(tree, params, wanted)
        discard_rollback(tree)
        return result

    # A killed run may have left its note: then this run owes the way back, too.
    before = save_rollback(tree, found, list(links))
    try:
        tree.apply(found)
        for path, target in links.items():
            replace_link(path, target)
        if unread:
            run(["systemctl", "daemon-reload"])
        if acting and (stale or restart or disabled):
            activate(params, disabled, restart, stale)
    except (TreeError, OSError) as error:
        # A unit that only was down has nothing else to go back to.
        if before is None or not (before.files or before.links):
            discard_rollback(tree)
            raise
        raise TreeError(f"{error}\n{go_back(tree, before, params)}") from None
    record_applied(tree, params, wanted)
    discard_rollback(tree)
    return result


def record_applied(tree: Tree, params: dict[str, Any], wanted: str) -> None:
    """Record what came up healthy, and what the drift probe compares."""
    managed = tree.managed()
    managed["links"] = {link["path"]: link["target"] for link in params["links"]}
    managed["units"] = params["units"]
    managed["loaded"] = {
        " ".join(argv): {"argv": argv, "printed": printed(argv)} for argv in params["loaded"]
    }
    tree.save(
        files=sorted(file.path for file in tree.files),
        directories=sorted(directory.path for directory in tree.directories) or None,
        applied=wanted,
        units=params["units"],
        links=sorted(link["path"] for link in params["links"]) or None,
        loaded={words: entry["printed"] for words, entry in managed["loaded"].items()} or None,
        managed=managed,
    )


def activate(params: dict[str, Any], disabled: list[str], restart: list[str], stale: bool) -> None:
    """Make what is on disk what runs, and wait until that is healthy."""
    units: list[str] = params["units"]
    if units:
        run(["systemctl", "daemon-reload"])
    if stale:
        for argv in params["apply"]:
            run([str(word) for word in argv])
    if disabled:
        # A unit of a package that somebody masked cannot be enabled.
        attempt(["systemctl", "unmask", "--quiet", "--", *disabled])
        run(["systemctl", "enable", "--quiet", "--", *disabled])
    if restart:
        # A unit that gave up earlier (start limit) has to get a fresh chance.
        attempt(["systemctl", "reset-failed", "--", *restart])
        try:
            run(["systemctl", "restart", "--", *restart])
        except TreeError as error:
            logs = "\n".join(f"last lines of {u}:\n{journal(u)}" for u in restart)
            raise TreeError(f"{error}\n{logs}") from None
    if params["health"] and restart:
        wait_healthy(params["health"], units)


def go_back(tree: Tree, before: Snapshot, params: dict[str, Any]) -> str:
    """Restore what was there, run it, and say how that went.

    The record keeps the old fingerprint, so the next run tries again.
    """
    target = next((link for link in before.links.values() if link), "the previous configuration")
    try:
        before.restore()
        units = [u for u, s in unit_states(params["units"]).items() if s["LoadState"] == "loaded"]
        activate({**params, "units": units}, [], units, True)
    except (TreeError, OSError) as error:
        return f"Went back to {target}, which does not work either: {error}"
    discard_rollback(tree)
    return f"Went back to {target}."


def absent(module: AnsibleModule, tree: Tree) -> dict[str, Any]:
    units = [
        unit
        for unit, state in unit_states(tree.record.get("units") or []).items()
        if state.get("LoadState") == "loaded"
    ]
    units += [
        unit
        for unit, state in unit_states(module.params["units"]).items()
        if state.get("ActiveState") == "active" or state.get("UnitFileState") == "enabled"
    ]
    units = sorted(set(units), key=lambda unit: (unit.endswith(".service"), unit))
    paths = [
        path
        for key in ("files", "links")
        for path in tree.record.get(key) or []
        if os.path.lexists(path)
    ]
    paths += [path for path in module.params["absent"] if is_there(path)]
    directories = tree.empty_directories()
    changes = [f"stop and disable {unit}" for unit in units]
    changes += [f"remove {path}" for path in dict.fromkeys(paths + directories)]
    if tree.record and not changes:
        changes = ["forget the tree"]
    if changes and not module.check_mode:
        # What a timer has just started would find its files gone, and stay behind as failed.
        started = [f"{u.removesuffix('.timer')}.service" for u in units if u.endswith(".timer")]
        if units:
            run(["systemctl", "disable", "--now", "--quiet", "--", *units])
            attempt(["systemctl", "stop", "--", *started])
        for path in paths:
            remove_path(path)
        for path in tree.empty_directories():
            os.rmdir(path)
        if units:
            run(["systemctl", "daemon-reload"])
            attempt(["systemctl", "reset-failed", "--", *units, *started])
        for argv in module.params["apply"]:
            run([str(word) for word in argv])
        tree.forget()
    if not module.check_mode:
        note(module.params, "gone", dict.fromkeys([*paths, *module.params["absent"]]))
    return {"changed": bool(changes), "changes": changes, "restarted": []}


def main() -> None:
    module = TreeModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    try:
        tree = Tree(module.params)
        act = present if module.params["state"] == "present" else absent
        if module.check_mode:
            result = act(module, tree)
        else:
            with locked(tree.name):
                # Read again: the record may have changed while this run waited.
                result = act(module, Tree(module.params))
    except (TreeError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()

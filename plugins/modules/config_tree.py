#!/usr/bin/python
"""Ansible module: write a whole tree of configuration and bring its consumers up to date."""

from __future__ import annotations

DOCUMENTATION = r"""
module: config_tree
short_description: Write a set of files, then apply them and restart their units when they differ
description:
  - Compares, validates and writes all files of one owner in a single remote run, and removes the
    files that it wrote earlier and that are no longer wanted.
  - Restarts on difference, not on event. A fingerprint of everything the consumers see is recorded
    after they came up healthy; while it differs from what is wanted, every run applies again. A
    restart that an interrupted run still owed is therefore made up for by the next one.
  - Use it through the action plugin of the same name, which renders C(trees) from templates.
options:
  name:
    description: Name of the tree, unique on the host; the record's file name.
    type: str
    required: true
  state:
    description: V(absent) stops and disables the units and removes the files that were written.
    type: str
    choices: [present, absent]
    default: present
  trees:
    description:
      - Directories of templates below the role's C(templates), each C(src), C(dest) and optionally
        C(owner), C(group), C(mode), C(dir_mode), C(secret) (content hidden, mode 0600), C(purge)
        (the directory holds nothing else) and C(directory) (V(false) for a directory shared with
        others, whose owner and mode stay). The suffix C(.j2) is dropped.
    type: list
    elements: dict
  files:
    description: Single files with their content.
    type: list
    elements: dict
    default: []
  secret_files:
    description: Single files whose content is hidden from output and diff.
    type: list
    elements: dict
    default: []
  directories:
    description: Directories to make, with owner, group, mode and purge.
    type: list
    elements: dict
    default: []
  links:
    description: Symbolic links C(path) to C(target), switched atomically and switched back when the
      health gate fails.
    type: list
    elements: dict
    default: []
  validate:
    description: Commands (argument lists) that judge the new files before anything is written;
      C({stage}) is a directory that holds them at their full paths.
    type: list
    elements: list
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
import subprocess
import time
import urllib.error
import urllib.request
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.prime_spark_tree import TREE_ARGUMENTS, Tree, TreeError

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
    "health": {
        "type": "dict",
        "options": {
            "url": {"type": "str", "required": True},
            "timeout": {"type": "int", "default": 60},
        },
    },
}


def run(argv: list[str]) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise TreeError(f"`{' '.join(argv)}` failed: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def unit_states(units: list[str]) -> dict[str, dict[str, str]]:
    """The properties of each unit, asked for in one call."""
    if not units:
        return {}
    wanted = "Id,ActiveState,UnitFileState,NeedDaemonReload,LoadState"
    done = subprocess.run(
        ["systemctl", "show", "--property", wanted, "--", *units],
        capture_output=True,
        text=True,
        check=False,
    )
    blocks = [
        dict(line.partition("=")[::2] for line in block.splitlines())
        for block in done.stdout.strip().split("\n\n")
    ]
    # In the order asked; a template's instance keeps its name, an alias would not.
    return dict(zip(units, blocks, strict=False))


def journal(unit: str) -> str:
    done = subprocess.run(
        ["journalctl", "--unit", unit, "--lines", "15", "--no-pager", "--output", "cat"],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip()


def wait_healthy(health: dict[str, Any], units: list[str]) -> None:
    """Poll the URL until it answers 200; raise with what was seen last."""
    deadline = time.monotonic() + health["timeout"]
    seen = "nothing was tried"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while True:
        try:
            with opener.open(health["url"], timeout=5) as answer:
                if answer.status == 200:
                    return
                seen = f"status {answer.status}"
        except urllib.error.HTTPError as error:
            seen = f"status {error.code}: {error.read(2000).decode(errors='replace').strip()}"
        except OSError as error:
            seen = str(error)
        if time.monotonic() >= deadline:
            logs = "\n".join(f"last lines of {unit}:\n{journal(unit)}" for unit in units)
            raise TreeError(
                f"expected {health['url']} to answer 200 within {health['timeout']} s, "
                f"seen last: {seen}\n{logs}"
            )
        time.sleep(0.25)


def switch_link(path: str, target: str) -> None:
    temporary = f"{path}.prime-spark-new"
    if os.path.lexists(temporary):
        os.unlink(temporary)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    os.symlink(target, temporary)
    os.rename(temporary, path)


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
    states = unit_states(units)
    stale = tree.record.get("applied") != wanted
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
    tree.validate()
    if module.check_mode or not changes:
        return result

    tree.apply(found)
    before = {path: link_target(path) for path in links}
    for path, target in links.items():
        switch_link(path, target)
    if acting and (stale or restart or disabled):
        try:
            if units:
                run(["systemctl", "daemon-reload"])
            if stale:
                for argv in params["apply"]:
                    run([str(word) for word in argv])
            if disabled:
                run(["systemctl", "enable", "--quiet", "--", *disabled])
            if restart:
                # A unit that gave up earlier (start limit) has to get a fresh chance.
                subprocess.run(["systemctl", "reset-failed", "--", *restart], capture_output=True)
                try:
                    run(["systemctl", "restart", "--", *restart])
                except TreeError as error:
                    logs = "\n".join(f"last lines of {u}:\n{journal(u)}" for u in restart)
                    raise TreeError(f"{error}\n{logs}") from None
            if params["health"] and restart:
                wait_healthy(params["health"], units)
        except TreeError as error:
            went_back = [path for path, target in before.items() if target]
            for path in went_back:
                switch_link(path, str(before[path]))
            if went_back and units:
                subprocess.run(["systemctl", "restart", "--", *units], capture_output=True)
                raise TreeError(f"{error}\nWent back to {before[went_back[0]]}.") from None
            raise
    tree.save(
        files=sorted(file.path for file in tree.files),
        applied=wanted,
        units=units,
        links=sorted(link["path"] for link in params["links"]) or None,
    )
    return result


def absent(module: AnsibleModule, tree: Tree) -> dict[str, Any]:
    units = [
        unit
        for unit, state in unit_states(tree.record.get("units", [])).items()
        if state.get("LoadState") == "loaded"
    ]
    paths = [
        path
        for key in ("files", "links")
        for path in tree.record.get(key) or []
        if os.path.lexists(path)
    ]
    changes = [f"stop and disable {unit}" for unit in units] + [f"remove {path}" for path in paths]
    if tree.record and not changes:
        changes = ["forget the tree"]
    if changes and not module.check_mode:
        if units:
            run(["systemctl", "disable", "--now", "--quiet", "--", *units])
        for path in paths:
            os.unlink(path)
        if units:
            run(["systemctl", "daemon-reload"])
        tree.forget()
    return {"changed": bool(changes), "changes": changes, "restarted": []}


def main() -> None:
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    try:
        tree = Tree(module.params)
        act = present if module.params["state"] == "present" else absent
        result = act(module, tree)
    except (TreeError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()

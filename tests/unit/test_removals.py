"""Roles that leave hosts: which, and in which order, whatever Python's hash seed is."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml
from ansible_collections.prime_spark.fleet.plugins.plugin_utils.catalogue import catalogue
from ansible_collections.prime_spark.fleet.plugins.plugin_utils.removals import removals, to_confirm

ROOT = Path(__file__).resolve().parents[2]
UTILS = ROOT / "plugins" / "plugin_utils"


ROLES = sorted(catalogue())
# In the order of the plays.
ORDER = [role for role, entry in catalogue().items() if entry.has_group]
# Ansible's filters that make a set of what they are given, and with it lose its order.
UNORDERED = re.compile(r"\|\s*(intersect|difference|union|symmetric_difference)\b")
# What may follow within the same expression, so that no order is left to lose.
COUNTED = re.compile(r"\|\s*(length|sort)\b")


def in_order() -> list[str]:
    """Every role, as it leaves a host that is in no group any more."""
    return removals({"one": ROLES}, {}, ORDER)["one"]


def test_what_stands_on_something_else_goes_first() -> None:
    order = in_order()
    assert sorted(order) == [role for role in ROLES if role != "common"]
    for role in order:
        for needed in catalogue()[role].needs:
            assert order.index(role) < order.index(needed.removesuffix("@host"))
    # The way to the host may be through the VPN.
    assert order[-1] == "wireguard"


def test_only_roles_whose_group_the_host_left_go() -> None:
    recorded = {"one": ["common", "kafka", "redis"], "two": ["redis"], "three": []}
    groups = {"redis": ["two"], "kafka": ["one"]}
    assert removals(recorded, groups, ORDER) == {"one": ["redis"]}


def test_the_order_is_the_same_with_every_hash_seed() -> None:
    code = (
        "import json, sys; from removals import removals; "
        "print(removals(*json.load(sys.stdin))['one'])"
    )
    # The one file: as a part of the collection, every start would import Ansible.
    path = str(UTILS)
    asked = json.dumps([{"one": ROLES}, {}, ORDER])

    def order(seed: int) -> str:
        done = subprocess.run(
            [sys.executable, "-c", code],
            input=asked,
            env={**os.environ, "PYTHONHASHSEED": str(seed), "PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip()

    with ThreadPoolExecutor(2) as pool:
        assert set(pool.map(order, range(20))) == {str(in_order())}


def test_no_play_and_no_role_asks_a_set_for_an_order() -> None:
    found = []
    for directory in ("playbooks", "roles", "inventories"):
        for path in sorted((ROOT / directory).rglob("*")):
            if path.suffix not in (".yml", ".j2"):
                continue
            for number, line in enumerate(path.read_text().splitlines(), 1):
                for match in UNORDERED.finditer(line):
                    if not COUNTED.search(line, match.end()):
                        found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    assert found == [], "`select('in', ...)` and `reject('in', ...)` keep the order"


# --- the play, in a tree of its own whose roles only say that they were removed ----------------

STUB = """
- ansible.builtin.debug:
    msg: "{{ lookup('ansible.builtin.vars', role_name ~ '_state') }} {{ role_name }}"
"""


def leave(
    tree: Path, recorded: dict[str, list[str]], *arguments: str, groups: Any = None
) -> tuple[int, str]:
    """Run playbooks/leftovers.yml on hosts that have these roles; exit status and output.

    No role of ours can be found from there: they would be removed from this very machine.
    """
    (tree / "playbooks").mkdir()
    shutil.copy(ROOT / "playbooks" / "leftovers.yml", tree / "playbooks")
    shutil.copytree(ROOT / "playbooks" / "tasks", tree / "playbooks" / "tasks")
    shutil.copytree(ROOT / "collections", tree / "collections", symlinks=True)
    for part in ("meta", "plugins"):
        (tree / part).symlink_to(ROOT / part)
    settings = (ROOT / "ansible.cfg").read_text().splitlines(keepends=True)
    (tree / "ansible.cfg").write_text("".join(s for s in settings if "vault" not in s))
    for role in ROLES:
        tasks = tree / "roles" / role / "tasks"
        tasks.mkdir(parents=True)
        (tasks / "main.yml").write_text(STUB)
    hosts = {host: {"host_precheck": {"recorded": roles}} for host, roles in recorded.items()}
    children: dict[str, Any] = {"managed": {"hosts": hosts}}
    children |= {
        role: {"hosts": {name: {} for name in names}} for role, names in (groups or {}).items()
    }
    variables = {"ansible_connection": "local", "ansible_become": False}
    (tree / "hosts.yml").write_text(json.dumps({"all": {"vars": variables, "children": children}}))
    done = subprocess.run(
        [
            Path(sys.executable).with_name("ansible-playbook"),
            *("-i", "hosts.yml", "playbooks/leftovers.yml", *arguments),
        ],
        cwd=tree,
        env={**os.environ, "ANSIBLE_NOCOLOR": "1", "ANSIBLE_CONFIG": str(tree / "ansible.cfg")},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stdout + done.stderr


def removed(output: str) -> list[tuple[str, str]]:
    """Host and role of every removal, in order."""
    return re.findall(r"ok: \[(\w+)\] =>\s+msg: absent (\w+)", output)


def test_the_play_removes_in_that_order(tmp_path: Path) -> None:
    recorded = {"one": ["common", "docker", "exporters", "timescale"]}
    confirmed = ("-e", "confirm_removal=timescale,docker")
    status, said = leave(tmp_path, recorded, *confirmed)
    assert status == 0, said
    assert removed(said) == [("one", "exporters"), ("one", "timescale"), ("one", "docker")]


def test_a_role_that_would_leave_its_last_host_with_data_stops_the_run(tmp_path: Path) -> None:
    recorded = {"one": ["timescale"], "two": ["telemetry"], "three": ["telemetry"]}
    groups = {"timescale": ["two"], "telemetry": ["three"]}  # Moved to where nothing is yet.
    status, said = leave(tmp_path, recorded, groups=groups)
    assert status == 2
    assert removed(said) == []
    sentence = "timescale leaves one: no other host of this run has its data, which stays there"
    assert f"REMOVAL  {sentence}" in said
    assert "REMOVAL  telemetry" not in said
    assert "confirm with -e confirm_removal=timescale" in " ".join(said.split())


def test_in_check_mode_the_question_is_shown_and_the_rest_goes_on(tmp_path: Path) -> None:
    recorded = {"one": ["timescale"], "two": ["cli"]}
    status, said = leave(tmp_path, recorded, "--check")
    assert status == 0, said
    assert "a run without --check stops here, unless it is given -e confirm_removal=time" in said
    assert set(removed(said)) == {("one", "timescale"), ("two", "cli")}


def test_many_removals_at_once_are_confirmed_each() -> None:
    recorded = {name: ["node_exporter", "cli"] for name in ("one", "two", "three")}
    leaves = {name: ["node_exporter"] for name in recorded}
    assert to_confirm(leaves, recorded, ["kafka"], 3) == {}
    leaves["one"] = ["cli", "node_exporter"]
    assert to_confirm(leaves, recorded, ["kafka"], 3) == {
        "cli": "cli leaves one",
        "node_exporter": "node_exporter leaves one, two, three",
    }


def test_data_that_another_host_keeps_is_no_question() -> None:
    recorded = {"one": ["telemetry"], "two": ["telemetry"]}
    assert to_confirm({"one": ["telemetry"]}, recorded, ["telemetry"], 3) == {}
    both = {name: ["telemetry"] for name in recorded}
    assert list(to_confirm(both, recorded, ["telemetry"], 3)) == ["telemetry"]


def test_the_roles_that_keep_data_are_those_that_a_purge_empties() -> None:
    for role in (role for role, entry in catalogue().items() if entry.data):
        specs = yaml.safe_load((ROOT / "roles" / role / "meta" / "argument_specs.yml").read_text())
        assert f"{role}_purge" in specs["argument_specs"]["main"]["options"], role

"""Action plugins tell modules for which role and run they work; the plan reads what came back."""

from __future__ import annotations

import hashlib
import hmac
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from ansible_collections.prime_spark.fleet.plugins.plugin_utils.plan import sealing_key

ROOT = Path(__file__).resolve().parents[2]

ROUTING = yaml.safe_load((ROOT / "meta" / "runtime.yml").read_text())["plugin_routing"]["modules"]
VARIABLES = {
    "ansible_parent_role_names": ["prime_spark.fleet.kafka"],
    "role_name": "python_service",
    "fleet_plan": {"run": "r1"},
}


def arguments(name: str, delegate_to: str | None = None) -> dict[str, Any]:
    action = import_module(
        f"ansible_collections.prime_spark.fleet.plugins.action.{name}"
    ).ActionModule
    plugin = action.__new__(action)
    plugin._task = SimpleNamespace(args={"name": "x"}, delegate_to=delegate_to, check_mode=False)
    return dict(plugin.module_arguments(VARIABLES))


@pytest.mark.parametrize("name", ["owned", "config_tree", "converge_command"])
def test_a_module_is_told_the_outermost_role_and_the_run(name: str) -> None:
    given = arguments(name)
    assert (given["name"], given["role"], given["run"]) == ("x", "kafka", "r1")


def test_what_is_delegated_is_no_role_of_that_host() -> None:
    assert arguments("owned", delegate_to="another")["role"] == ""


def test_every_module_that_notes_an_owner_has_an_action_that_tells_it() -> None:
    noting = {
        path.stem
        for path in (ROOT / "plugins" / "modules").glob("*.py")
        if "OWNER_ARGUMENTS" in path.read_text() or "TREE_ARGUMENTS" in path.read_text()
    }
    own = {path.stem for path in (ROOT / "plugins" / "action").glob("*.py")}
    assert noting - own == ROUTING.keys()
    assert {entry["action_plugin"] for entry in ROUTING.values()} == {"prime_spark.fleet.owned"}


def test_the_plan_reads_stamps_facts_and_seals() -> None:
    action = import_module(
        "ansible_collections.prime_spark.fleet.plugins.action.fleet_plan"
    ).ActionModule
    secrets = {"vault_a": "x" * 20}
    key = sealing_key(secrets, "one", "kafka", "n")
    seal = hmac.new(key.encode(), b"d", hashlib.sha256).hexdigest()
    drift = {"stamp": "old", "nonce": "n", "digest": "d", "seal": seal, "differences": ["x"]}
    seen = {"drift": {"kafka": drift}, "ansible_facts": {"ansible_architecture": "aarch64"}}
    raw = {"one": {**secrets, "host_precheck": seen}, "two": {"host_precheck": {}}}
    hostvars = SimpleNamespace(raw_get=lambda host: raw[host])
    stamps = {"kafka": {"hosts": {"one": "s1", "two": "s2"}, "facts": ["architecture"]}}
    first, second = action.known(None, {
        "hostvars": hostvars, "inventory_validation": {"stamps": stamps},
        "ansible_play_hosts": ["one", "two", "three"],
    })  # fmt: skip
    assert (first.host, first.recorded, first.sealed) == ("one", "old", True)
    assert first.facts == {"architecture": "aarch64"}
    assert (second.host, second.recorded, second.sealed) == ("two", None, False)


def test_plays_in_which_nothing_is_played_are_not_announced(tmp_path: Path) -> None:
    local = {"hosts": "localhost", "gather_facts": False, "connection": "local"}
    end = {"name": "Leave out", "ansible.builtin.meta": "end_host"}
    say = {"name": "Say", "ansible.builtin.debug": {"msg": "hello"}}
    never = {**end, "when": False}
    plays = [
        {"name": "Left out", **local, "pre_tasks": [end], "tasks": [say]},
        {"name": "Played", **local, "pre_tasks": [never], "tasks": [say]},
    ]
    (tmp_path / "site.yml").write_text(yaml.safe_dump(plays))
    done = subprocess.run(
        [Path(sys.executable).with_name("ansible-playbook"), tmp_path / "site.yml"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    shown = [line.split("]")[0] for line in done.stdout.splitlines() if line.endswith("*")]
    assert shown[:2] == ["PLAY [Played", "TASK [Say"]
    assert "skipping" not in done.stdout

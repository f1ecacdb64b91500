"""What `ansible-doc` shows of a module is what the module takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULES: dict[str, Any] = {
    path.stem: import_module(f"ansible_collections.prime_spark.fleet.plugins.modules.{path.stem}")
    for path in sorted((ROOT / "plugins" / "modules").glob("*.py"))
}
# What the action plugins take, and make other arguments of.
OF_ACTIONS = {
    "compose_project": {"trees", "environment"},
    "config_tree": {"trees"},
    "converge_command": {"trees"},
}
# What the action plugins give, and nobody types.
INTERNAL = {"release_digest"}


@pytest.fixture(scope="module")
def documented() -> dict[str, Any]:
    """The documentation of every module, fragments included."""
    done = subprocess.run(
        [
            Path(sys.executable).with_name("ansible-doc"),
            "--json",
            *(f"prime_spark.fleet.{name}" for name in MODULES),
        ],
        cwd=ROOT,
        env={**os.environ, "ANSIBLE_NOCOLOR": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return {
        name.rpartition(".")[2]: entry["doc"] for name, entry in json.loads(done.stdout).items()
    }


@pytest.mark.parametrize("name", MODULES)
def test_every_module_is_documented(name: str, documented: dict[str, Any]) -> None:
    assert documented[name]["short_description"]


@pytest.mark.parametrize("name", [n for n in MODULES if hasattr(MODULES[n], "ARGUMENTS")])
def test_every_option_is_documented_as_it_is(name: str, documented: dict[str, Any]) -> None:
    arguments, options = MODULES[name].ARGUMENTS, documented[name]["options"]
    assert set(arguments) - INTERNAL == set(options) - OF_ACTIONS.get(name, set())
    for option in set(arguments) - INTERNAL:
        for key in ("type", "default", "choices", "elements"):
            assert arguments[option].get(key) == options[option].get(key), (option, key)
        assert arguments[option].get("required", False) == options[option].get("required", False)


def test_the_filters_by_which_roles_find_each_other_are_documented() -> None:
    names = [f"prime_spark.fleet.{name}" for name in ("endpoint", "endpoints", "endpoint_on")]
    done = subprocess.run(
        [Path(sys.executable).with_name("ansible-doc"), "--type", "filter", "--json", *names],
        cwd=ROOT,
        env={**os.environ, "ANSIBLE_NOCOLOR": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for name, entry in json.loads(done.stdout).items():
        assert f"| {name}('" in entry["examples"]
        assert entry["doc"]["positional"] == "service, hostvars"
        assert entry["return"]["_value"]["type"] in ("dict", "list")

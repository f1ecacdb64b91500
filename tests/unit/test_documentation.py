"""What `ansible-doc` shows of a module or a filter is what it takes."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from collections.abc import Iterable
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


def ansible_doc(kind: str, names: Iterable[str]) -> dict[str, Any]:
    """What `ansible-doc` says of plugins of ours, by name."""
    done = subprocess.run(
        [
            Path(sys.executable).with_name("ansible-doc"),
            *("--type", kind, "--json"),
            *(f"prime_spark.fleet.{name}" for name in names),
        ],
        cwd=ROOT,
        env={**os.environ, "ANSIBLE_NOCOLOR": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return {name.rpartition(".")[2]: entry for name, entry in json.loads(done.stdout).items()}


@pytest.fixture(scope="module")
def documented() -> dict[str, Any]:
    """The documentation of every module, fragments included."""
    return {name: entry["doc"] for name, entry in ansible_doc("module", MODULES).items()}


@pytest.mark.parametrize("name", MODULES)
def test_every_module_is_documented(name: str, documented: dict[str, Any]) -> None:
    assert documented[name]["short_description"]


def test_every_action_has_a_module_of_its_name_for_its_documentation() -> None:
    # No task names `owned`: meta/runtime.yml does, for modules with documentation of their own.
    actions = {path.stem for path in (ROOT / "plugins" / "action").glob("*.py")} - {"owned"}
    assert actions <= set(MODULES)


@pytest.mark.parametrize("name", [n for n in MODULES if hasattr(MODULES[n], "ARGUMENTS")])
def test_every_option_is_documented_as_it_is(name: str, documented: dict[str, Any]) -> None:
    arguments, options = MODULES[name].ARGUMENTS, documented[name]["options"]
    assert set(arguments) - INTERNAL == set(options) - OF_ACTIONS.get(name, set())
    for option in set(arguments) - INTERNAL:
        for key in ("type", "default", "choices", "elements"):
            assert arguments[option].get(key) == options[option].get(key), (option, key)
        assert arguments[option].get("required", False) == options[option].get("required", False)


FILTERS = {
    name: function
    for path in sorted((ROOT / "plugins" / "filter").glob("*.py"))
    for name, function in import_module(
        f"ansible_collections.prime_spark.fleet.plugins.filter.{path.stem}"
    )
    .FilterModule()
    .filters()
    .items()
}
TYPES = {"Mapping": "dict", "Any": "dict", "Collection": "list"}


def type_of(annotation: str) -> str:
    name = annotation.partition("[")[0].partition(" ")[0]
    return TYPES.get(name, name)


def test_every_filter_is_documented_as_it_is() -> None:
    shown = ansible_doc("filter", FILTERS)
    for name, function in FILTERS.items():
        doc = shown[name]["doc"]
        signature = inspect.signature(function)
        given, *others = signature.parameters.values()
        assert doc["short_description"] and doc["name"] == name
        positional = [word for word in doc.get("positional", "").split(", ") if word]
        assert positional == [other.name for other in others], name
        assert set(doc["options"]) == {"_input", *positional}, name
        for option, parameter in (("_input", given), *((other.name, other) for other in others)):
            documented = doc["options"][option]
            assert documented["type"] == type_of(parameter.annotation), (name, option)
            required = parameter.default is inspect.Parameter.empty
            assert documented.get("required", False) == required, (name, option)
            assert required or documented.get("default") == parameter.default, (name, option)
        result = shown[name]["return"]["_value"]
        assert result["description"], name
        assert result["type"] == type_of(signature.return_annotation), name

"""Every role that a play has is proven alone by a molecule scenario of its name."""

from __future__ import annotations

from pathlib import Path

import yaml
from ansible_collections.prime_spark.fleet.plugins.plugin_utils.catalogue import catalogue

MOLECULE = Path(__file__).resolve().parents[2] / "molecule"


def test_every_role_has_its_scenario() -> None:
    scenarios = {path.parent.name for path in MOLECULE.glob("*/molecule.yml")}
    assert scenarios - {"default"} == set(catalogue())


def test_a_scenario_is_its_name_and_an_input_to_change() -> None:
    for role in catalogue():
        assert (MOLECULE / role / "molecule.yml").resolve() == MOLECULE / "shared" / "role.molecule"
        variables = yaml.safe_load((MOLECULE / role / "hosts.yml").read_text())["all"]["vars"]
        assert all(name.startswith(f"{role}_") for name in variables["scenario_change"]), role

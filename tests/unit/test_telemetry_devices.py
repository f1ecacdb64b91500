"""Which devices are expected is one fact of the inventory, whoever asks for it."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template

ROOT = Path(__file__).resolve().parents[2]
GROUPS = {
    "all": ["cloud", "hub", "lamp", "spoke"],
    "telemetry": ["hub", "lamp", "spoke"],
    "timescale": ["cloud"],
}
# A device with a name of its own, and one whose collector was taken away.
HOSTVARS: dict[str, dict[str, Any]] = {
    "cloud": {"inventory_hostname": "cloud", "wireguard_address": "10.0.0.11"},
    "hub": {"inventory_hostname": "hub", "wireguard_address": "10.0.0.2"},
    "lamp": {"inventory_hostname": "lamp", "telemetry_state": "absent"},
    "spoke": {"wireguard_address": "10.0.0.3", "telemetry_device_id": "pump"},
}


def template(text: str, **variables: Any) -> Any:
    known = {"groups": GROUPS, "hostvars": HOSTVARS, "group_names": [], **variables}
    trusted = {
        name: trust_as_template(value) if isinstance(value, str) else value
        for name, value in known.items()
    }
    return Templar(loader=DataLoader(), variables=trusted).template(
        trust_as_template(text), overrides={"trim_blocks": True, "lstrip_blocks": True}
    )


def rendered(role: str, path: str) -> str:
    """A template of a role, with its own defaults and variables."""
    variables: dict[str, Any] = {}
    for name in ("defaults", "vars"):
        variables |= yaml.safe_load((ROOT / "roles" / role / name / "main.yml").read_text())
    return str(template((ROOT / "roles" / role / "templates" / path).read_text(), **variables))


def expected(rules: str) -> list[dict[str, str]]:
    """The labels of the devices that these rules wait for."""
    (group,) = yaml.safe_load(rules)["groups"]
    return [
        rule["labels"] for rule in group["rules"] if rule["record"] == "prime_spark:expected_device"
    ]


def test_rules_and_metrics_know_the_same_devices() -> None:
    rules = rendered("monitoring", "stack/config/prometheus/rules/expected.yml.j2")
    assert expected(rules) == [
        {"device_id": "hub", "host": "hub"},
        {"device_id": "pump", "host": "spoke"},
    ]
    queries = rendered("exporters", "stack/config/postgres-exporter/queries.yml.j2")
    assert set(re.findall(r"ARRAY\[(.*?)\]", queries)) == {"'hub', 'pump'"}


def test_devices_that_no_host_has_are_expected_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever they are named, and once."""
    for host in ("cloud", "hub"):
        monkeypatch.setitem(HOSTVARS[host], "telemetry_other_devices", ["kiln", "hub"])
    rules = rendered("monitoring", "stack/config/prometheus/rules/expected.yml.j2")
    assert expected(rules) == [
        {"device_id": "hub", "host": "hub"},
        {"device_id": "pump", "host": "spoke"},
        {"device_id": "kiln"},
    ]
    queries = rendered("exporters", "stack/config/postgres-exporter/queries.yml.j2")
    assert set(re.findall(r"ARRAY\[(.*?)\]", queries)) == {"'hub', 'pump', 'kiln'"}


@pytest.mark.parametrize(
    ("hosts", "devices"),
    [(["hub", "spoke", "cloud"], ["hub", "pump"]), (["cloud", "lamp"], [])],
)
def test_verify_asks_for_the_devices_of_the_hosts_of_the_run(
    hosts: list[str], devices: list[str]
) -> None:
    play = yaml.safe_load((ROOT / "playbooks" / "verify.yml").read_text())[-1]
    found = template("{{ verify_devices }}", **play["vars"], ansible_play_hosts=hosts)
    assert found == devices
    (shown,) = (task for task in play["tasks"] if "prime_spark.fleet.fleet_table" in task)
    asked = template(shown["prime_spark.fleet.fleet_table"]["devices"], **play["vars"])
    assert asked == {"hub": "hub", "spoke": "pump"}


def test_a_fleet_without_telemetry_expects_nothing() -> None:
    module: Any = import_module("ansible_collections.prime_spark.fleet.plugins.filter.telemetry")
    assert module.telemetry_devices({"all": []}, {}) == {}

"""A role finds another by its endpoint, whose address and port are the inventory's."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from ansible.errors import AnsibleFilterError
from ansible_collections.prime_spark.fleet.plugins.filter import endpoints as plugin

# As playbooks call them.
filters = SimpleNamespace(**plugin.FilterModule().filters())

ROLES = Path(__file__).resolve().parents[2] / "roles"
PLACES = ("defaults", "vars", "tasks", "templates")
GROUPS = {"kafka": ["a", "b", "c"], "monitoring": ["a"]}
HOSTVARS: dict[str, dict[str, Any]] = {
    "a": {"wireguard_address": "10.0.0.1", "kafka_port": "9999"},
    "b": {"wireguard_address": "10.0.0.2", "kafka_listen_address": "10.0.0.9"},
    "c": {"wireguard_address": "10.0.0.3", "kafka_state": "absent"},
}


def default_ports() -> dict[str, set[int]]:
    """Return the ports among the defaults of each role."""
    found = {}
    for path in ROLES.glob("*/defaults/main.yml"):
        defaults = yaml.safe_load(path.read_text()) or {}
        found[path.parents[1].name] = {
            value
            for name, value in defaults.items()
            if name.endswith("_port") and isinstance(value, int)
        }
    return found


def test_endpoints_follow_the_inventory() -> None:
    assert filters.endpoints(GROUPS, "kafka", HOSTVARS) == [
        {"host": "a", "address": "10.0.0.1", "port": 9999, "server": "10.0.0.1:9999"},
        {"host": "b", "address": "10.0.0.9", "port": 9094, "server": "10.0.0.9:9094"},
    ]
    assert filters.endpoint(GROUPS, "monitoring_prometheus", HOSTVARS)["server"] == "10.0.0.1:9090"
    assert filters.endpoint_on("b", "redis", HOSTVARS)["server"] == "10.0.0.2:6379"


def test_a_fleet_without_the_role_has_an_empty_address() -> None:
    assert filters.endpoints(GROUPS, "redis", HOSTVARS) == []
    nowhere = {"host": "", "address": "", "port": 6379, "server": ""}
    assert filters.endpoint(GROUPS, "redis", HOSTVARS) == nowhere


@pytest.mark.parametrize("service", ["postgres", "monitoring_kibana", "nas"])
def test_an_unknown_service_is_named(service: str) -> None:
    with pytest.raises(AnsibleFilterError, match=f"no role has the default {service}_port"):
        filters.endpoints(GROUPS, service, HOSTVARS)


def test_the_container_networks_are_those_of_the_role_docker() -> None:
    hosts = {"a": {}, "b": {"docker_address_pools": [{"base": "10.7.0.0/16", "size": 24}]}}
    assert filters.container_networks("a", hosts) == ["172.30.0.0/16", "172.17.0.0/16"]
    assert filters.container_networks("b", hosts) == ["10.7.0.0/16", "172.17.0.0/16"]


def test_no_role_types_the_port_of_another() -> None:
    """Within a container, on its loopback, ports are the image's own."""
    ports = default_ports()
    typed = []
    for role, own in ports.items():
        others = {port for ports_of_role in ports.values() for port in ports_of_role} - own
        for path in [path for place in PLACES for path in (ROLES / role / place).rglob("*")]:
            if path.suffix in {".json", ".py"} or not path.is_file():
                continue
            for line in path.read_text().splitlines():
                text = re.sub(r"127\.0\.0\.1:\d+", "", line)
                found = {int(number) for number in re.findall(r"(?<![\d.])\d{4,5}(?![\d.])", text)}
                typed += [f"{path.relative_to(ROLES)}: {line.strip()}"] * bool(found & others)
    assert not typed, "\n".join(typed)

"""Where services listen in the VPN, from the inventory and the roles' own defaults."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from ansible.errors import AnsibleFilterError

# Docker's first bridge keeps Docker's default where it was there before the pools were configured.
FIRST_BRIDGE = "172.17.0.0/16"
ROLES = Path(__file__).resolve().parents[2] / "roles"


@cache
def defaults_of(role: str) -> dict[str, Any]:
    """The role's own defaults, templates not resolved."""
    found = yaml.safe_load((ROLES / role / "defaults" / "main.yml").read_text(encoding="utf-8"))
    return dict(found or {})


@cache
def role_of(service: str) -> str:
    """The role that ``service`` belongs to: ``monitoring`` for ``monitoring_prometheus``."""
    parts = service.split("_")
    for length in range(len(parts), 0, -1):
        role = "_".join(parts[:length])
        if (ROLES / role).is_dir():
            if f"{service}_port" in defaults_of(role):
                return role
            break
    raise AnsibleFilterError(f"endpoints: no role has the default {service}_port")


def inputs_of(service: str) -> set[str]:
    """The variables of a host that its endpoint follows from."""
    role = role_of(service)
    return {f"{service}_port", f"{role}_listen_address", f"{role}_state", "wireguard_address"}


def endpoint_on(host: str, service: str, hostvars: Mapping[str, Any]) -> dict[str, Any]:
    """Where a host's service listens, as ``host``, ``address``, ``port`` and ``server``."""
    role = role_of(service)
    values = hostvars[host]
    address = values.get(f"{role}_listen_address") or values.get("wireguard_address", "")
    port = values.get(f"{service}_port", defaults_of(role)[f"{service}_port"])
    return {"host": host, "address": address, "port": int(port), "server": f"{address}:{port}"}


def endpoints(
    groups: Mapping[str, list[str]], service: str, hostvars: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Where a service listens, on each host of its role's group.

    ``service`` is a role or, where a role has several, the prefix of the port's variable. A host
    whose role is absent has none.
    """
    role = role_of(service)
    return [
        endpoint_on(host, service, hostvars)
        for host in groups.get(role, [])
        if hostvars[host].get(f"{role}_state", "present") != "absent"
    ]


def endpoint(
    groups: Mapping[str, list[str]], service: str, hostvars: Mapping[str, Any]
) -> dict[str, Any]:
    """The first of the endpoints; where there is none, an empty address and the default port."""
    found = endpoints(groups, service, hostvars)
    port = defaults_of(role_of(service))[f"{service}_port"]
    return found[0] if found else {"host": "", "address": "", "port": port, "server": ""}


def container_networks(host: str, hostvars: Mapping[str, Any]) -> list[str]:
    """The networks of a host's containers."""
    name = "docker_address_pools"
    pools = hostvars[host].get(name, defaults_of("docker")[name])
    return [*(pool["base"] for pool in pools), FIRST_BRIDGE]

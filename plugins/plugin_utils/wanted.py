"""What the roles of each host want of it: what stands in their way there is refused or adopted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .catalogue import Entry
from .endpoints import FIRST_BRIDGE
from .fleet import Fleet


def wanted(
    fleet: Fleet, entries: Mapping[str, Entry], ports: Mapping[str, list[dict[str, Any]]]
) -> dict[str, dict[str, Any]]:
    """By host, the option ``wanted`` of host_precheck and host_adopt."""
    found = {}
    for host, values in fleet.values.items():
        roles = [role for role in entries if host in fleet.of(role)]
        pools = values.get("docker_address_pools") or []
        hub = "wireguard" in roles and values.get("wireguard_role") == "hub"
        found[host] = {
            "roles": roles,
            "ports": [{"port": entry["port"]} for entry in ports.get(host, [])],
            "networks": [*(pool["base"] for pool in pools), FIRST_BRIDGE] * ("docker" in roles),
            "vpn_port": values.get("wireguard_port") if hub else 0,
            "forward": hub,
            "daemon": values.get("docker_daemon_settings") or {},
            "nas": {
                "mount_point": values.get("nas_mount_point"),
                "group": values.get("nas_group"),
                "gid": values.get("nas_gid"),
            }
            if "nas" in roles
            else {},
        }
    return found

"""Filters for whoever expects telemetry: which devices the inventory says there are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def telemetry_hosts(groups: Mapping[str, list[str]], hostvars: Any) -> dict[str, str]:
    """Host to the name of its device, of every host that has a collector."""
    return {
        host: str(hostvars[host].get("telemetry_device_id", host))
        for host in groups.get("telemetry", [])
        if hostvars[host].get("telemetry_state", "present") != "absent"
    }


def telemetry_devices(groups: Mapping[str, list[str]], hostvars: Any) -> list[str]:
    """Every device whose samples are expected: those of hosts, then those that no host has."""
    others = [hostvars[host].get("telemetry_other_devices", []) for host in groups["all"]]
    found = [*telemetry_hosts(groups, hostvars).values(), *(d for listed in others for d in listed)]
    return list(dict.fromkeys(map(str, found)))


class FilterModule:
    """Registers the filters."""

    def filters(self) -> dict[str, Any]:
        return {
            "telemetry_devices": telemetry_devices,
            "telemetry_hosts": telemetry_hosts,
        }

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


def telemetry_devices(groups: Mapping[str, list[str]], hostvars: Any) -> dict[str, str]:
    """Every device whose samples are expected to its host, which is empty where no host has it."""
    devices = {device: host for host, device in telemetry_hosts(groups, hostvars).items()}
    for host in groups["all"]:
        for device in hostvars[host].get("telemetry_other_devices", []):
            devices.setdefault(str(device), "")
    return devices


class FilterModule:
    """Registers the filters."""

    def filters(self) -> dict[str, Any]:
        return {
            "telemetry_devices": telemetry_devices,
            "telemetry_hosts": telemetry_hosts,
        }

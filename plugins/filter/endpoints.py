"""Filters by which one role finds another."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

# Ansible makes module_utils importable on hosts only, not for its own plugins.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "plugin_utils"))

from prime_spark_inventory.endpoints import container_networks, endpoint, endpoint_on, endpoints


class FilterModule:
    """Registers the filters."""

    def filters(self) -> dict[str, Any]:
        return {
            "container_networks": container_networks,
            "endpoint": endpoint,
            "endpoint_on": endpoint_on,
            "endpoints": endpoints,
        }

"""Filters by which one role finds another."""

from __future__ import annotations

from typing import Any

from ansible_collections.prime_spark.fleet.plugins.plugin_utils.endpoints import (
    container_networks,
    endpoint,
    endpoint_on,
    endpoints,
)


class FilterModule:
    """Registers the filters."""

    def filters(self) -> dict[str, Any]:
        return {
            "container_networks": container_networks,
            "endpoint": endpoint,
            "endpoint_on": endpoint_on,
            "endpoints": endpoints,
        }

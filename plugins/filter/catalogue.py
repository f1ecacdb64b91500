"""Filters by which playbooks ask the catalogue of roles."""

from __future__ import annotations

from typing import Any

from ansible_collections.prime_spark.fleet.plugins.plugin_utils.catalogue import (
    data_of,
    of_groups,
    removable,
)


class FilterModule:
    """Registers the filters."""

    def filters(self) -> dict[str, Any]:
        return {
            "of_roles": of_groups,
            "removable": removable,
            "role_data": data_of,
        }

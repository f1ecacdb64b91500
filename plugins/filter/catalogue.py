"""Filters by which playbooks ask the catalogue of roles."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

# Ansible makes module_utils importable on hosts only, not for its own plugins.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "plugin_utils"))

from prime_spark_inventory.catalogue import data_of, of_groups


class FilterModule:
    """Registers the filters."""

    def filters(self) -> dict[str, Any]:
        return {
            "of_roles": of_groups,
            "role_data": data_of,
        }

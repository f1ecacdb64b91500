"""The lab's inventory with some groups changed: what the operator does who moves a service."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from tests.system.fleet import fleet

LAB = fleet.ROOT / "inventories" / "lab"


@contextmanager
def inventory(**groups: list[str]) -> Iterator[str]:
    """A copy of the lab's inventory in which each of the named groups has exactly these hosts."""
    hosts = yaml.safe_load((LAB / "hosts.yml").read_text())
    for group, names in groups.items():
        hosts["all"]["children"][group] = {"hosts": {name: {} for name in names}}
    with tempfile.TemporaryDirectory(prefix="prime-spark-overlay-", dir=LAB.parent) as directory:
        path = Path(directory)
        (path / "hosts.yml").write_text(json.dumps(hosts))
        # Beside the other inventories, so that what group_vars say of paths stays right.
        (path / "group_vars").symlink_to(LAB / "group_vars")
        yield str(path)

"""The lab runs, and the machine is what it was before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lab import common, machine_state


def test_machine_is_unchanged(before: dict[str, Any]) -> None:
    assert machine_state.differences(before, machine_state.snapshot()) == []


def test_machine_has_no_mount_of_the_lab(owner: common.Owner) -> None:
    assert common.mounts_below(common.STATE) == []
    assert common.mounts_below(common.RUNTIME) == []
    assert common.mounts_below(Path("/run/netns")) == []


def test_differences_are_noticed(before: dict[str, Any]) -> None:
    after = machine_state.snapshot()
    key = "vm/swappiness"
    after["sysctls"][key] = "changed"
    after["firewall"]["nft"] = "table inet other {}"
    after["cgroups"]["groups"] = {}
    found = machine_state.differences(before, after)
    assert any(key in line for line in found)
    assert any(line.startswith("firewall nft") for line in found)
    assert any(line.startswith("cgroups groups") for line in found)

"""The inventories: same shape, groups that exist as roles, addresses that are where they belong."""

from __future__ import annotations

import ipaddress
import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from lab import topology

ROOT = Path(__file__).resolve().parents[2]
# The segments of the fleet; every other group is the name of a role.
SEGMENTS = {"all", "ungrouped", "edge", "cloud", "storage", "managed"}


@cache
def inventory(name: str) -> dict[str, Any]:
    done = subprocess.run(
        [
            str(Path(sys.executable).parent / "ansible-inventory"),
            "-i",
            f"inventories/{name}",
            "--list",
        ],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    return dict(json.loads(done.stdout))


INVENTORIES = sorted(path.name for path in (ROOT / "inventories").iterdir())


@pytest.mark.parametrize("name", INVENTORIES)
def test_groups_are_named_like_roles(name: str) -> None:
    groups = set(inventory(name)) - {"_meta"} - SEGMENTS
    roles = {path.name for path in (ROOT / "roles").iterdir()}
    assert groups <= roles


def test_a_group_that_a_fleet_lacks_is_no_warning() -> None:
    assert "llm_server" not in inventory("production")
    listed = subprocess.run(
        [
            str(Path(sys.executable).parent / "ansible-playbook"),
            *("-i", "inventories/production", "--list-hosts", "site.yml"),
        ],
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
    )
    assert "play #" in listed.stdout
    assert "WARNING" not in listed.stderr


def verified(*inventories: Path) -> subprocess.CompletedProcess[str]:
    """A run that looks at the hosts of some inventories."""
    sources = [word for path in inventories for word in ("-i", str(path))]
    return subprocess.run(
        [str(Path(sys.executable).parent / "ansible-playbook"), *sources, "playbooks/verify.yml"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


def test_an_inventory_that_is_not_there_is_no_fleet_without_hosts(tmp_path: Path) -> None:
    done = verified(tmp_path / "prodution")
    assert done.returncode != 0
    assert f"failed to parse inventory source {tmp_path}/prodution" in done.stderr


def test_a_file_of_hosts_that_cannot_be_read_is_not_passed_over(tmp_path: Path) -> None:
    (tmp_path / "edge.yml").write_text("all: {hosts: {}}")
    (tmp_path / "cloud.yml").write_text("all: {hosts: {")
    done = verified(tmp_path)
    assert done.returncode != 0
    assert f"failed to parse inventory source {tmp_path}/cloud.yml" in done.stderr


def test_lab_and_production_place_the_same_roles_on_the_same_hosts() -> None:
    lab, production = inventory("lab"), inventory("production")
    for group in set(production) - {"_meta", "all", "ungrouped"}:
        assert lab[group] == production[group], group


@pytest.mark.parametrize("name", ["lab", "production"])
def test_vpn_addresses_are_unique_and_in_the_vpn(name: str) -> None:
    variables = inventory(name)["_meta"]["hostvars"].values()
    addresses = [v["wireguard_address"] for v in variables if "wireguard_address" in v]
    assert len(addresses) == len(set(addresses)) == 4
    network = ipaddress.ip_network("10.90.8.0/24" if name == "lab" else "10.8.0.0/24")
    assert all(ipaddress.ip_address(address) in network for address in addresses)


def test_the_lab_inventory_has_the_addresses_of_the_topology() -> None:
    variables = inventory("lab")["_meta"]["hostvars"]
    assert {name: v["ansible_host"] for name, v in variables.items()} == {
        host.name: str(host.address) for host in topology.HOSTS.values()
    }


def test_production_addresses_stand_in_the_production_inventory_only() -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    public = re.compile(r"141\.136\.35\.51|69\.62\.123\.97")
    allowed = ("inventories/production/", "tests/", "docs/", "README.md")
    found = [
        path
        for path in tracked
        if not path.startswith(allowed)
        and (ROOT / path).is_file()
        and public.search((ROOT / path).read_text(errors="ignore"))
    ]
    assert found == []

"""A host of the fleet is the controller: its own VPN changes too, and a run converges the fleet."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.system.faults import inside, vpn
from tests.system.fleet.fleet import connect, shell


@pytest.fixture(scope="module", autouse=True)
def controller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    inside.install(tmp_path_factory.mktemp("controller"))
    yield
    inside.remove()


def mtu(name: str) -> int:
    return int(shell(connect(name), f"cat /sys/class/net/{vpn.INTERFACE}/mtu"))


def test_the_hub_changes_its_own_interface_and_the_vpn_stays_whole() -> None:
    before = {name: mtu(name) for name in [vpn.hub(), *vpn.spokes()]}
    other = before[vpn.hub()] - 40
    assert vpn.hub() == inside.HOST
    inside.play("--tags", "wireguard", "-e", json.dumps({"wireguard_mtu": other}))
    try:
        assert {mtu(name) for name in before} == {other}
        assert not any(vpn.left_behind(name) for name in before)
    finally:
        inside.play("--tags", "wireguard")
    assert {name: mtu(name) for name in before} == before
    vpn.wait_until_whole()

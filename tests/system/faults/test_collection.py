"""A role of the collection's archive on the lab, in a playbook that is not ours."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.archive import build, install, play
from tests.system.faults import vpn
from tests.system.fleet import fleet
from tests.system.fleet.fleet import connect, members, shell

PLAY = {
    "hosts": "wireguard",
    "become": True,
    "gather_facts": True,
    "gather_subset": ["!all", "distribution"],
    "roles": ["prime_spark.fleet.wireguard"],
}


@pytest.fixture
def as_our_run_leaves_it() -> Iterator[None]:
    """The records on the hosts are those of a run of ours again."""
    yield
    vpn.apply()
    vpn.wait_until_whole()


def test_the_vpn_is_mended_by_somebody_elses_playbook(
    tmp_path: Path, as_our_run_leaves_it: None
) -> None:
    """One host has lost its interface: it gets it back, on the others nothing changes."""
    install(build(tmp_path), tmp_path)
    (tmp_path / "vpn.yml").write_text(yaml.safe_dump([PLAY]))
    vault = f"lab@{fleet.ROOT / 'tools' / 'vault-password-lab'}"
    options = ("-i", fleet.ROOT / "inventories" / "lab", "--vault-id", vault, "vpn.yml")
    lost = vpn.spokes()[0]
    shell(connect(lost), f"systemctl stop wg-quick@{vpn.INTERFACE}")
    status, output = play(tmp_path, tmp_path, *options)
    assert status == 0, output[-4000:]
    assert [name for name, count in vpn.changed(output).items() if count] == [lost], output[-4000:]
    vpn.wait_until_whole()
    status, output = play(tmp_path, tmp_path, *options)
    assert status == 0, output[-4000:]
    assert vpn.changed(output) == dict.fromkeys(members("wireguard"), 0), output[-4000:]

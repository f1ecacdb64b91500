"""Hosts cut off from the network, and the VPN's hub: no sample is lost, none stored twice."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest

from tests.system.faults import site
from tests.system.faults.delivery import INTERVAL, Delivery
from tests.system.fleet import fleet
from tests.system.fleet.fleet import connect, members, setting, shell, variables

# How long a host is away. The short form spans three samples.
CUT_SECONDS = 120.0 if fleet.FULL else 3 * INTERVAL
# From the end of a fault until everything is stored and healthy.
RECOVERY_SECONDS = 90.0

(HUB,) = [n for n in members("wireguard") if variables(n).get("wireguard_role") == "hub"]
(DATABASE,) = members("timescale")
(MONITORING,) = members("monitoring")
# The long form cuts every host alone. The short one cuts at once a spoke that only measures and
# the host that stores, on different sides of the VPN; the hub with Kafka is rebooted elsewhere.
LONG: list[tuple[str, ...]] = [(name,) for name in members("telemetry")]
SHORT: list[tuple[str, ...]] = [("spark-agent-1", DATABASE)]


def cut(names: Sequence[str], seconds: float) -> None:
    """Cut hosts off for some time."""
    until = time.monotonic() + seconds
    try:
        for name in names:
            fleet.lab("cut", name)
        # The length of the fault is what is tested, so this waits for nothing else.
        time.sleep(max(0.0, until - time.monotonic()))
    finally:
        for name in names:
            fleet.lab("heal", name)
            fleet.disconnect(name)


@pytest.mark.parametrize("names", LONG if fleet.FULL else SHORT, ids="+".join)
def test_no_sample_is_lost_or_doubled_while_hosts_are_cut_off(names: tuple[str, ...]) -> None:
    delivery = Delivery()
    cut(names, CUT_SECONDS)
    delivery.confirm(f"{CUT_SECONDS:.0f} s without {' and '.join(names)}", RECOVERY_SECONDS)


def test_no_sample_is_lost_or_doubled_when_the_vpn_hub_restarts() -> None:
    delivery = Delivery()
    shell(connect(HUB), "systemctl restart wg-quick@wg0.service")
    delivery.confirm("a restart of the VPN's hub", RECOVERY_SECONDS)


def test_verify_names_a_target_that_prometheus_does_not_reach() -> None:
    """Everything runs on its host, so that nothing else would tell."""
    name = next(n for n in members("node_exporter") if n not in {HUB, MONITORING})
    table = "inet fleet_test"
    rule = f"tcp dport {setting(name, 'node_exporter', 'node_exporter_port')} drop"
    chain = "{ type filter hook input priority -300; }"
    try:
        shell(connect(name), f"nft 'add table {table}; add chain {table} input {chain}'")
        shell(connect(name), f"nft 'add rule {table} input iifname \"wg0\" {rule}'")
        fleet.wait_until(
            "verify to notice",
            lambda: site.run("--tags", "verify", "-e", "verify_wait=1"),
            60,
            lambda run: f"WRONG    {MONITORING}: Prometheus: node of {name} at " in run.output,
        )
    finally:
        shell(connect(name), f"nft 'delete table {table}'")
    assert site.run("--tags", "verify").status == 0

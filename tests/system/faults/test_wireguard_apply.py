"""S2: peers come and go without a lost packet; a change that cuts off takes itself back."""

from __future__ import annotations

import base64
import os
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.system.faults import vpn
from tests.system.fleet import fleet
from tests.system.fleet.fleet import connect, probe, shell, vpn_address

pytestmark = pytest.mark.timeout(1200)

# For a run that reaches its confirmation on a busy machine, and for one that is killed before.
REVERT_SECONDS = 90
KILLED_REVERT_SECONDS = 20
STREAM_PORT = 40123
STREAM_RATE = 100
STOP = "/run/fleet-test-stream-stop"
OTHER_PORT = 51821


def made_up_key() -> str:
    return base64.b64encode(os.urandom(32)).decode()


@pytest.fixture(autouse=True)
def as_it_was(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every test ends with the inventory's VPN; after one that failed it is brought back here."""
    failed = request.session.testsfailed
    yield
    if request.session.testsfailed > failed:
        vpn.apply()
        vpn.wait_until_whole()


def client(directory: Path, number: int) -> Path:
    """The hub gets a device of its own, which makes a peer of the hub without another host."""
    peer = {
        "name": f"test-client-{number}",
        "address": f"{vpn_address(vpn.hub()).rpartition('.')[0]}.{200 + number}",
        "public_key": made_up_key(),
    }
    directory.mkdir()
    return vpn.overlay(directory, {vpn.hub(): {"wireguard_clients": [peer]}})


def hub_peers() -> list[str]:
    script = (
        "python3 -c 'import json; "
        'print(*(p["name"] for p in json.load(open("/etc/wireguard/peers.json"))["peers"]))\''
    )
    return shell(connect(vpn.hub()), script).split()


def test_peers_come_and_go_while_not_a_packet_of_others_is_lost(tmp_path: Path) -> None:
    sender, receiver = vpn.spokes()[-1], vpn.spokes()[0]
    first, second = client(tmp_path / "1", 1), client(tmp_path / "2", 2)
    shell(connect(sender), f"rm -f {STOP}")
    before = shell(connect(vpn.hub()), "systemctl show -P ActiveEnterTimestamp wg-quick@wg0")
    with ThreadPoolExecutor(2) as pool:
        target = vpn_address(receiver)
        received = pool.submit(
            probe, connect(receiver), "stream_receive", target, str(STREAM_PORT), seconds=300
        )
        fleet.wait_until(
            "the receiver",
            lambda: shell(connect(receiver), f"ss -Hnlu 'sport = :{STREAM_PORT}'"),
            20,
        )
        sent = pool.submit(
            probe,
            connect(sender),
            "stream_send",
            *(target, str(STREAM_PORT), str(STREAM_RATE), STOP),
            seconds=300,
        )
        try:
            # The peer is added; then it leaves and another one comes, in one run; then that leaves.
            vpn.apply("--limit", vpn.hub(), overlay=first)
            assert "test-client-1" in hub_peers()
            vpn.apply("--limit", vpn.hub(), overlay=second)
            assert "test-client-2" in hub_peers() and "test-client-1" not in hub_peers()
            vpn.assert_nothing_to_do("--limit", vpn.hub(), overlay=second)
            vpn.apply("--limit", vpn.hub())
            assert set(hub_peers()) == set(vpn.spokes())
        finally:
            shell(connect(sender), f"touch {STOP}")
        packets, seen = sent.result()["sent"], received.result()
    print(f"{packets} packets sent, {seen}")
    assert packets > 5 * STREAM_RATE
    assert (seen["received"], seen["missing"]) == (packets, [])
    after = shell(connect(vpn.hub()), "systemctl show -P ActiveEnterTimestamp wg-quick@wg0")
    assert after == before, "the interface was restarted"


def wrong_address(directory: Path, seconds: int = REVERT_SECONDS) -> Path:
    """The hub alone gets another address; nothing is wrong with it but that nobody expects it."""
    other = f"{vpn_address(vpn.hub()).rpartition('.')[0]}.99"
    values = {"wireguard_address": other, "wireguard_revert_seconds": seconds}
    return vpn.overlay(directory, {vpn.hub(): values})


def wait_for_the_old_state(seconds: float) -> None:
    fleet.wait_until(
        "the hub's old address",
        lambda: vpn.address(vpn.hub()),
        seconds,
        lambda seen: seen == vpn_address(vpn.hub()),
    )
    vpn.wait_until_whole()
    fleet.wait_until("nothing left behind", lambda: vpn.left_behind(vpn.hub()), 20, lambda s: not s)
    rule = shell(connect(vpn.hub()), "nft list table ip prime_spark_vpn_guard")
    assert f"ip daddr {vpn_address(vpn.hub())} " in rule


def test_a_wrong_address_of_the_hub_is_taken_back(tmp_path: Path) -> None:
    other = wrong_address(tmp_path)
    predicted = vpn.apply("--limit", vpn.hub(), "--check", "--diff", overlay=other)
    assert f"comes back after {REVERT_SECONDS} s" in predicted
    assert vpn.address(vpn.hub()) == vpn_address(vpn.hub())
    status, output = vpn.play("--limit", vpn.hub(), overlay=other)
    assert status != 0
    said = re.search(r"expected a peer to reach this host where it knows it, not so from", output)
    assert said and "the previous state is back" in output, output[-3000:]
    wait_for_the_old_state(20)
    vpn.wait_for_telemetry()
    # The next run tries again and says so, and the old inventory finds nothing to do.
    again = vpn.apply("--limit", vpn.hub(), "--check", "--diff", overlay=other)
    assert "the last change was taken back at" in again
    vpn.assert_nothing_to_do()


def armed_and_killed(directory: Path, seconds: int) -> float:
    """A run that is killed after the change and before its confirmation; returns when."""
    process = vpn.start("--limit", vpn.hub(), overlay=wrong_address(directory, seconds))
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("TASK [prime_spark.fleet.wireguard : Guard the VPN address"):
                break
        else:
            pytest.fail("the run ended before its change")
    finally:
        vpn.kill(process)
    fleet.disconnect(vpn.hub())
    assert vpn.address(vpn.hub()) != vpn_address(vpn.hub())
    assert vpn.left_behind(vpn.hub()) != []
    return time.monotonic()


def test_a_killed_run_is_taken_back_by_the_timer(tmp_path: Path) -> None:
    killed = armed_and_killed(tmp_path, KILLED_REVERT_SECONDS)
    wait_for_the_old_state(KILLED_REVERT_SECONDS + 20)
    print(f"back {time.monotonic() - killed:.0f} s after the kill, armed {KILLED_REVERT_SECONDS} s")
    vpn.assert_nothing_to_do()


@pytest.mark.skipif(not fleet.FULL, reason="a form for `make test-full`")
def test_a_reboot_while_armed_ends_in_the_old_state(tmp_path: Path) -> None:
    name = vpn.hub()
    boot = shell(connect(name), "cat /proc/sys/kernel/random/boot_id")
    armed_and_killed(tmp_path, REVERT_SECONDS)
    fleet.lab("reboot", name)
    fleet.disconnect(name)
    fleet.wait_until(
        "another boot",
        lambda: shell(connect(name), "cat /proc/sys/kernel/random/boot_id"),
        60,
        lambda seen: seen != boot,
    )
    wait_for_the_old_state(60)
    vpn.wait_for_telemetry(90)
    vpn.assert_nothing_to_do()


def test_another_port_of_the_hub_in_one_run_of_the_whole_fleet(tmp_path: Path) -> None:
    own = fleet.variables(vpn.hub())
    ends = {
        name: f"{own[name].rpartition(':')[0]}:{OTHER_PORT}"
        for name in ("wireguard_endpoint", "wireguard_lan_endpoint")
    }
    other = vpn.overlay(tmp_path, {vpn.hub(): {"wireguard_port": OTHER_PORT, **ends}})
    with vpn.forwarded(OTHER_PORT):
        vpn.apply(overlay=other)
        vpn.wait_until_whole()
        listening = shell(connect(vpn.hub()), "wg show wg0 listen-port")
        assert listening == str(OTHER_PORT)
        for name in vpn.spokes():
            assert shell(connect(name), "wg show wg0 endpoints").endswith(f":{OTHER_PORT}")
            assert vpn.left_behind(name) == []
        vpn.assert_nothing_to_do(overlay=other)
        # And back, while both ports still lead to the hub.
        vpn.apply()
    vpn.wait_until_whole()
    vpn.wait_for_telemetry()
    vpn.assert_nothing_to_do()


@pytest.mark.skipif(not fleet.FULL, reason="a form for `make test-full`")
def test_other_addresses_of_all_hosts_in_one_run(tmp_path: Path) -> None:
    prefix, _, length = "10.90.9.0/24".partition("/")
    values = {
        name: {
            "wireguard_network": f"{prefix}/{length}",
            "wireguard_address": f"{prefix[:-1]}{vpn_address(name).rpartition('.')[2]}",
        }
        for name in [vpn.hub(), *vpn.spokes()]
    }
    other = vpn.overlay(tmp_path, values)
    vpn.apply(overlay=other)
    for name, value in values.items():
        assert vpn.address(name) == value["wireguard_address"]
    for name in vpn.spokes():
        target = str(values[vpn.hub()]["wireguard_address"])
        shell(connect(name), 'ping -q -c 1 -W 5 "$1"', target)
    vpn.assert_nothing_to_do(overlay=other)
    vpn.apply()
    vpn.wait_until_whole()
    vpn.wait_for_telemetry()
    vpn.assert_nothing_to_do()


@pytest.mark.skipif(not fleet.FULL, reason="a form for `make test-full`")
def test_a_host_that_is_managed_over_the_vpn_restarts_it_too(tmp_path: Path) -> None:
    """The connection of the run goes through the interface that it restarts."""
    name = vpn.spokes()[0]
    own = fleet.variables(name)
    jump = f"ssh -F {fleet.LAB}/ssh/config -W %h:%p {vpn.hub()}"
    arguments = (
        f"-o ProxyCommand='{jump}' -o HostKeyAlias={own['ansible_host']} "
        f"-o UserKnownHostsFile={fleet.LAB}/ssh/known_hosts "
        "-o GlobalKnownHostsFile=/dev/null -o StrictHostKeyChecking=yes -o IdentitiesOnly=yes"
    )
    values = {
        "ansible_host": vpn_address(name),
        "ansible_ssh_common_args": arguments,
        "wireguard_mtu": 1380,
    }
    other = vpn.overlay(tmp_path, {name: values})
    vpn.apply("--limit", name, overlay=other)
    assert "mtu 1380" in shell(connect(name), "ip link show dev wg0")
    assert vpn.left_behind(name) == []
    vpn.assert_nothing_to_do("--limit", name, overlay=other)
    vpn.apply("--limit", name)

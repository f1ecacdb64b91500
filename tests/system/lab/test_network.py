"""Nothing leaks: proven by rule sets and route look-ups, never by sending a packet."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import pytest

from lab import common, network
from lab.topology import (
    CTL,
    HOSTS,
    INET,
    INFRASTRUCTURE,
    INTERNET,
    LAN,
    REGISTRY,
    ROUTER,
    SEGMENTS,
    VPN_NETWORK,
)

Run = Callable[..., subprocess.CompletedProcess[str]]

NAMESPACES = (*INFRASTRUCTURE, *HOSTS)
LAN_HOSTS = [host.name for host in HOSTS.values() if host.segment is LAN]
INTERNET_HOSTS = [host.name for host in HOSTS.values() if host.segment is INTERNET]
VPN_ADDRESSES = [str(VPN_NETWORK[index]) for index in (2, 3, 11, 14, 200)]
# A NAS at home, neighbours of a machine in a company or a cloud, a metadata service.
PRIVATE = ["192.168.1.49", "192.168.0.1", "10.255.0.1", "10.0.0.1", "100.64.0.1", "169.254.169.254"]


def production_addresses() -> list[str]:
    """The public addresses of the owner's machines, read from where they stand."""
    found: set[str] = set()
    for path in (common.CHECKOUT / "inventories/production").rglob("*.yml"):
        found.update(re.findall(r"\b(?:\d{1,3}\.){3}\d{1,3}\b(?!/)", path.read_text()))
    return sorted(text for text in found if IPv4Address(text).is_global)


def route(netns: Run, namespace: str, address: str) -> dict[str, Any] | None:
    """The kernel's choice for an address; None when it is unreachable."""
    result = netns(namespace, "ip", "-json", "route", "get", address)
    if result.returncode != 0:
        assert "nreachable" in result.stderr, result.stderr
        return None
    answer: dict[str, Any] = json.loads(result.stdout)[0]
    return answer


def chains(netns: Run, namespace: str) -> dict[str, dict[str, Any]]:
    """Base chains of the lab's filter table by hook."""
    listing = netns(namespace, "nft", "-j", "list", "table", "inet", "lab")
    objects = json.loads(listing.stdout)["nftables"]
    return {o["chain"]["hook"]: o["chain"] for o in objects if "chain" in o}


def rules(netns: Run, namespace: str, chain: str) -> list[str]:
    """A chain's rules as text."""
    listing = netns(namespace, "nft", "--stateless", "list", "chain", "inet", "lab", chain).stdout
    lines = [line.strip() for line in listing.splitlines()]
    return [line for line in lines if line and not re.match(r"table|chain|type|}", line)]


@pytest.mark.parametrize("namespace", INFRASTRUCTURE)
def test_filter_drops_by_default(netns: Run, namespace: str) -> None:
    found = chains(netns, namespace)
    assert set(found) == {"input", "output", "forward"}
    assert {hook: chain["policy"] for hook, chain in found.items()} == dict.fromkeys(found, "drop")


def test_way_out_is_only_the_package_sources(netns: Run) -> None:
    established, only = rules(netns, INET, "forward")
    assert established == "ct state established,related accept"
    ports = ", ".join(map(str, network.package_sources().ports))
    assert only == (
        f'iifname "{INTERNET.bridge}" oifname "{network.TAP}" ip saddr {INTERNET.network} '
        f"ip daddr @sources tcp dport {{ {ports} }} accept"
    )


def test_allowed_addresses_come_from_the_resolver(netns: Run) -> None:
    listing = json.loads(netns(INET, "nft", "-j", "list", "set", "inet", "lab", "sources").stdout)
    (found,) = [o["set"] for o in listing["nftables"] if "set" in o]
    allowed = set(found.get("elem", []))
    assert not allowed & set(production_addresses())
    # Nothing else adds elements, so they are answers for the configured names.
    configuration = (common.RUNTIME / "dnsmasq.conf").read_text()
    names = set(re.findall(r"^server=/([^/]+)/", configuration, re.MULTILINE))
    assert names == set(network.package_sources().names)
    assert set(re.findall(r"^nftset=/([^/]+)/", configuration, re.MULTILINE)) == names
    assert "address=/#/" in configuration.splitlines()


def test_inet_itself_only_asks_its_resolver(netns: Run) -> None:
    found = rules(netns, INET, "output")
    new = [rule for rule in found if "established" not in rule and '"lo"' not in rule]
    assert len(new) == 1
    assert new[0].startswith(f'oifname "{network.TAP}" ip daddr 10.0.2.3 meta l4proto')
    assert new[0].endswith("th dport 53 accept")


def test_router_lets_in_one_port(netns: Run) -> None:
    inbound = [rule for rule in rules(netns, ROUTER, "forward") if 'iifname "wan"' in rule]
    assert len(inbound) == 1
    assert "ip daddr 10.90.1.10 udp dport 51820" in inbound[0]
    nat = netns(ROUTER, "nft", "list", "chain", "ip", "nat", "prerouting").stdout
    assert re.findall(r"dnat to \S+", nat) == ["dnat to 10.90.1.10"]


@pytest.mark.parametrize("namespace", [CTL, REGISTRY])
def test_feet_forward_nothing_and_have_no_default_route(netns: Run, namespace: str) -> None:
    assert rules(netns, namespace, "forward") == []
    assert netns(namespace, "cat", "/proc/sys/net/ipv4/ip_forward").stdout.strip() == "0"
    assert netns(namespace, "ip", "route", "show", "default").stdout == ""


def test_slirp_keeps_off_the_machines_loopback(owner: common.Owner) -> None:
    commands = []
    for path in Path(f"/proc/{owner['pid']}/root/proc").glob("[0-9]*/cmdline"):
        arguments = path.read_bytes().decode(errors="replace").split("\0")
        if arguments[0] == "slirp4netns":
            commands.append(arguments)
    assert len(commands) == 1
    assert "--disable-host-loopback" in commands[0]
    assert "--enable-ipv6" not in commands[0]


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_private_ranges_do_not_follow_a_default_route(netns: Run, namespace: str) -> None:
    machine = [str(net[1]) for net in network.machine_networks() if net.prefixlen < 32]
    for address in [*PRIVATE, *machine]:
        assert route(netns, namespace, address) is None, address


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_vpn_range_never_leaves_beside_the_tunnel(netns: Run, namespace: str) -> None:
    for address in VPN_ADDRESSES:
        found = route(netns, namespace, address)
        assert found is None or found["dev"] in ("wg0", "lo"), (address, found)


@pytest.mark.parametrize("name", INTERNET_HOSTS)
def test_internet_hosts_have_no_way_to_the_lan(netns: Run, name: str) -> None:
    for host in HOSTS.values():
        if host.segment is LAN:
            assert route(netns, name, str(host.address)) is None


@pytest.mark.parametrize("name", LAN_HOSTS)
def test_lan_hosts_reach_the_internet_segment_through_the_router(netns: Run, name: str) -> None:
    for host in HOSTS.values():
        if host.segment is INTERNET:
            found = route(netns, name, str(host.address))
            assert found is not None and found["gateway"] == str(LAN.gateway)


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_public_addresses_end_at_the_filter(netns: Run, namespace: str) -> None:
    """Towards the owner's machines there is the gateway or nothing; there, the filter drops."""
    addresses = production_addresses()
    assert addresses, "inventories/production names no public address"
    for address in addresses:
        found = route(netns, namespace, address)
        if namespace in (CTL, REGISTRY):
            assert found is None
        elif namespace == INET:
            assert found is not None and found["dev"] == network.TAP
        elif namespace == ROUTER or namespace in INTERNET_HOSTS:
            assert found is not None and found["gateway"] == str(INTERNET.gateway)
        else:
            assert found is not None and found["gateway"] == str(LAN.gateway)


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_no_ipv6(netns: Run, namespace: str) -> None:
    if not Path("/proc/sys/net/ipv6").exists():
        return
    assert netns(namespace, "ip", "-6", "-brief", "address").stdout == ""
    assert netns(namespace, "cat", "/proc/sys/net/ipv6/conf/all/disable_ipv6").stdout == "1\n"


def test_machine_has_no_route_into_the_lab(owner: common.Owner) -> None:
    routes = json.loads(
        subprocess.run(
            ["ip", "-4", "-json", "route", "show", "table", "all"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
    )
    lab = [*(segment.network for segment in SEGMENTS), VPN_NETWORK]
    for entry in routes:
        if entry["dst"] != "default":
            network_ = IPv4Network(entry["dst"], strict=False)
            assert not any(network_.overlaps(other) for other in lab), entry


def test_machine_sees_none_of_the_labs_namespaces(owner: common.Owner) -> None:
    names = {path.name for path in Path("/run/netns").glob("*")}
    assert not names & set(NAMESPACES)

"""The fleet as a stranger sees it: from the internet segment and from another host of the LAN.

Nothing but SSH answers, whatever address a neighbour writes on its packets, those of containers and
of the VPN included; WireGuard answers who has a key that it knows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from ansible_collections.prime_spark.fleet.plugins.module_utils import wireguard

from lab.topology import HOSTS, LAN, ROUTER_OUTSIDE
from tests.system.faults import vpn
from tests.system.fleet import fleet
from tests.system.fleet.fleet import (
    connect,
    members,
    other_address,
    probe,
    setting,
    shell,
    vpn_address,
)

pytestmark = pytest.mark.timeout(600)

SSH_PORT = 22
WIREGUARD_PORT = 51820
EVERY_PORT = [[1, 65535]]
# That no host and no peer has: it only makes a key known.
UNUSED_ADDRESS = "198.18.0.1/32"
LISTENER_PORT = 54321


def neighbour_of(name: str) -> str:
    """Another host of the same segment; one outside of the VPN where there is one."""
    others = [n for n, h in HOSTS.items() if h.segment is HOSTS[name].segment and n != name]
    return min(others, key=lambda other: (other in members("wireguard"), other))


def stranger() -> str:
    """A host on the internet segment."""
    return next(name for name in members("all") if HOSTS[name].segment is not LAN)


def addresses(name: str) -> list[str]:
    """Every IPv4 address of a host and of its containers."""
    host = connect(name)
    shown = json.loads(shell(host, "ip -json -4 address show"))
    found = [entry["local"] for link in shown for entry in link["addr_info"]]
    if name in members("docker"):
        script = (
            "docker ps --quiet | xargs --no-run-if-empty docker inspect --format "
            "'{{range .NetworkSettings.Networks}}{{println .IPAddress}}{{end}}'"
        )
        inside = shell(host, script).split()
        assert inside, f"{name} has no container"
        found += inside
    return found


def listening(name: str) -> set[int]:
    """The TCP ports that something listens at on a host or in one of its containers."""
    host = connect(name)
    ports = shell(host, "ss -Hltn | awk '{print $4}'").split()
    found = {int(entry.rpartition(":")[2]) for entry in ports}
    if name in members("docker"):
        script = (
            "docker ps --quiet | xargs --no-run-if-empty docker inspect --format "
            "'{{range $port, $_ := .Config.ExposedPorts}}{{println $port}}{{end}}'"
        )
        found |= {int(entry.partition("/")[0]) for entry in shell(host, script).split()}
    return found


def dense() -> list[list[int]]:
    """The low ports and every port that anything in the fleet listens at."""
    known = set().union(*map(listening, members("all")))
    return [[1, 1024], *([port, port] for port in sorted(known) if port > 1024)]


def scan(prober: str, targets: list[list[str]], ports: list[list[int]]) -> dict[str, Any]:
    wanted = json.dumps({"targets": targets, "ports": ports})
    return dict(probe(connect(prober), "scan", wanted, seconds=400))


def open_ports(found: dict[str, Any]) -> dict[str, list[int]]:
    return {address: seen["open"] for address, seen in found.items() if seen["open"]}


@pytest.fixture(scope="module")
def known_ports() -> list[list[int]]:
    return dense()


@pytest.fixture(scope="module")
def seen_by_neighbours(known_ports: list[list[int]]) -> dict[str, dict[str, Any]]:
    """Every host, scanned by a neighbour: all ports where a stranger comes first."""

    def look(name: str) -> dict[str, Any]:
        first = [other_address(name)]
        first += [vpn_address(name)] if name in members("wireguard") else []
        rest = [address for address in addresses(name) if address not in first]
        found = scan(neighbour_of(name), [[a, other_address(name)] for a in first], EVERY_PORT)
        ports = EVERY_PORT if fleet.FULL else known_ports
        found |= scan(neighbour_of(name), [[a, other_address(name)] for a in rest], ports)
        return found

    names = members("all")
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(names, pool.map(look, names), strict=True))


@pytest.mark.looks
@pytest.mark.parametrize("name", members("all"))
def test_a_neighbour_reaches_ssh_and_nothing_else(
    name: str, seen_by_neighbours: dict[str, dict[str, Any]]
) -> None:
    found = seen_by_neighbours[name]
    print(name, found)
    # The scan has seen something: every port of the first address has answered in some way.
    assert found[other_address(name)] == {"open": [SSH_PORT], "closed": 65534, "silent": 0}
    if name in members("wireguard"):
        assert found[vpn_address(name)] == {"open": [], "closed": 0, "silent": 65535}
    # Not at Docker's own addresses of the host either, where its SSH server listens, too.
    allowed = {
        address: {SSH_PORT} if address == other_address(name) else set() for address in found
    }
    wrong = {a: seen["open"] for a, seen in found.items() if set(seen["open"]) - allowed[a]}
    assert wrong == {}
    assert found["127.0.0.1"]["open"] == []


@pytest.mark.looks
def test_the_internet_reaches_nothing_of_the_lan(known_ports: list[list[int]]) -> None:
    """Everything is sent to the home router, which forwards one UDP port."""
    prober, router = stranger(), str(ROUTER_OUTSIDE)
    inside = [name for name in members("all") if HOSTS[name].segment is LAN]
    targets = [[other_address(name), router] for name in inside]
    targets += [[vpn_address(name), router] for name in inside if name in members("wireguard")]
    found = scan(prober, [[router, router]], EVERY_PORT)
    found |= scan(prober, targets, EVERY_PORT if fleet.FULL else known_ports)
    print(found)
    assert open_ports(found) == {}
    assert len(found) == 1 + len(targets)


@pytest.mark.looks
def test_no_host_forwards_a_neighbour_into_the_vpn(known_ports: list[list[int]]) -> None:
    prober = next(n for n in members("all") if n not in members("wireguard"))
    gate = other_address(vpn.hub())
    targets = [[vpn_address(name), gate] for name in members("wireguard")]
    assert open_ports(scan(prober, targets, known_ports)) == {}


@pytest.mark.looks
def test_only_prometheus_reaches_the_exporters() -> None:
    """They answer more than metrics: profiles, and probes of whatever address they are given."""
    (monitoring,) = members("monitoring")
    other = next(n for n in members("wireguard") if n not in {monitoring, vpn.hub()})
    exporters = {
        "node_exporter": ("node_exporter", "node_exporter_port"),
        "redis": ("exporters", "exporters_redis_port"),
        "timescale": ("exporters", "exporters_postgres_port"),
    }
    asked = [
        f"{vpn_address(name)}:{setting(name, role, port)}"
        for group, (role, port) in exporters.items()
        for name in members(group)
        if name != other
    ]
    assert set(probe(connect(monitoring), "tcp_connect", *asked).values()) == {"open"}
    assert "open" not in probe(connect(other), "tcp_connect", *asked).values()


@contextmanager
def listener(name: str) -> Iterator[None]:
    """Something listens at one more port of a host, on every address."""
    unit = "fleet-test-listener"
    code = f"import socket,time; s=socket.create_server(('', {LISTENER_PORT})); time.sleep(300)"
    shell(connect(name), 'systemd-run --quiet --collect --unit="$1" python3 -c "$2"', unit, code)
    try:
        look = f"ss -Hltn 'sport = :{LISTENER_PORT}'"
        fleet.wait_until("the listener", lambda: shell(connect(name), look), 20)
        yield
    finally:
        shell(connect(name), 'systemctl stop "$1"', unit)


@pytest.mark.looks
def test_the_scan_finds_a_port_that_is_opened() -> None:
    name = members("storage")[0]
    target = [other_address(name), other_address(name)]
    with listener(name):
        found = scan(neighbour_of(name), [target], [[LISTENER_PORT - 50, LISTENER_PORT + 50]])
    assert open_ports(found) == {other_address(name): [LISTENER_PORT]}


@pytest.mark.looks
def test_no_host_has_an_ipv6_address_that_would_have_to_be_probed() -> None:
    """The lab's segments have none; where they get some, the scan above has to learn it."""
    for name in members("all"):
        assert shell(connect(name), "ip -6 -brief address show scope link dev eth0") == ""
        assert shell(connect(name), "ip -6 -brief address show scope global") == ""


# 51820/UDP: who has no key gets no answer at all.


def endpoints() -> list[Any]:
    """Who is knocked at, from where, and under which address."""
    cases = [(name, neighbour_of(name), other_address(name)) for name in members("wireguard")]
    cases.append((vpn.hub(), stranger(), str(ROUTER_OUTSIDE)))
    return [pytest.param(*case, id=f"{case[0]}-at-{case[2]}") for case in cases]


def knock(name: str, prober: str, address: str) -> list[Any]:
    """Knock with a key that nobody knows, that the host knows, that it knows no longer."""
    target = connect(name)
    key = shell(target, "wg show wg0 public-key")
    private = wireguard.generate_private_key()
    public = wireguard.public_key_of(private)
    arguments = ("wireguard_handshake", key, address, str(WIREGUARD_PORT), private)
    answers = [probe(connect(prober), *arguments)]
    shell(target, f'wg set wg0 peer "$1" allowed-ips {UNUSED_ADDRESS}', public)
    try:
        answers.append(probe(connect(prober), *arguments))
    finally:
        shell(target, 'wg set wg0 peer "$1" remove', public)
    return [*answers, probe(connect(prober), *arguments)]


@pytest.fixture(scope="module")
def knocks() -> Iterator[dict[str, Future[list[Any]]]]:
    """Everywhere at the same time: what has to be waited for is that nobody answers."""
    with ThreadPoolExecutor() as pool:
        yield {case.id: pool.submit(knock, *case.values) for case in endpoints()}


@pytest.mark.looks
@pytest.mark.parametrize("case", [case.id for case in endpoints()])
def test_wireguard_answers_a_known_key_and_nobody_else(
    case: str, knocks: dict[str, Future[list[Any]]]
) -> None:
    silent = {"junk": [], "handshake": "silent"}
    answered = {"junk": [], "handshake": "response"}
    assert knocks[case].result() == [silent, answered, silent]


@pytest.mark.parametrize(
    "name", [n for n in members("wireguard") if HOSTS[n].segment is LAN and n in members("edge")]
)
def test_with_its_vpn_down_an_edge_host_is_out_of_reach(
    name: str, known_ports: list[list[int]]
) -> None:
    prober = stranger()
    services = [
        f"{vpn_address(name)}:{port}"
        for port in (SSH_PORT, setting(name, "telemetry", "telemetry_port"))
    ]
    before = probe(connect(prober), "tcp_connect", *services)
    assert set(before.values()) == {"open"}, before
    shell(connect(name), "systemctl stop wg-quick@wg0")
    try:
        router = str(ROUTER_OUTSIDE)
        ports = EVERY_PORT if fleet.FULL else known_ports
        targets = [[a, router] for a in (other_address(name), vpn_address(name))]
        assert open_ports(scan(prober, targets, ports)) == {}
        # And along the routes that the cloud host has, through the VPN.
        seen = probe(connect(prober), "tcp_connect", *services)
        assert "open" not in seen.values(), seen
    finally:
        shell(connect(name), "systemctl start wg-quick@wg0")
    vpn.wait_until_whole()

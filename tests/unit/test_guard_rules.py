"""The VPN guard's rules, in namespaces of the test: who reaches what of a host.

Skipped without nft or root; tests/system/faults/test_exposure.py asks the same of the lab's hosts.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jinja2
import pytest

ROOT = Path(__file__).resolve().parents[2]
TEMPLATE = ROOT / "roles" / "wireguard" / "templates" / "guard" / "vpn-guard.nft.j2"
# Addresses of the host: at home, of the VPN, of Docker's bridge.
HOME, VPN, BRIDGE = "198.18.1.1", "198.18.8.1", "172.30.0.1"
SSH, EXPORTER, SERVICE = 22, 9100, 9101
# How many connections a member may hold, and to a port that has little room.
MANY = 4
FEW_PORT, FEW = 5432, 2
# Listens at the ports that are its arguments.
LISTEN = """
import socket, sys, time
held = [socket.create_server(("", int(port))) for port in sys.argv[1:]]
print("ready", flush=True)
time.sleep(60)
"""
GUARD_PROBLEMS = """
import os
from ansible.plugins.loader import init_plugin_loader
init_plugin_loader([os.path.abspath("collections")])
from ansible_collections.prime_spark.fleet.plugins.modules.host_health import guard_problems
print(guard_problems())
"""

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("nft"), reason="needs root and nft"
)


def rules() -> str:
    environment = jinja2.Environment(trim_blocks=True)
    return environment.from_string(TEMPLATE.read_text()).render(
        __wireguard_interface="wg0",
        __wireguard_exporter_ports=[str(EXPORTER)],
        __wireguard_scrapers=["198.18.8.2"],
        __wireguard_container_networks=["172.30.0.0/16"],
        __wireguard_connections={FEW_PORT: FEW},
        wireguard_member_connections=MANY,
        wireguard_address=VPN,
        group_names=["docker"],
    )


def within(space: int) -> list[str]:
    """What runs a command in the namespace of a process."""
    return ["nsenter", f"--net=/proc/{space}/ns/net", "--"]


def namespace() -> subprocess.Popen[str]:
    """A process with a network of its own, which ends with it: no mount stays on the machine."""
    process = subprocess.Popen(
        ["unshare", "--net", "sh", "-c", "echo ready; exec sleep 120"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


@pytest.fixture
def spaces() -> Iterator[tuple[int, int]]:
    """A host with the guard, and a neighbour on its LAN that is a peer of its VPN, too."""
    processes = [namespace(), namespace()]
    host, other = (process.pid for process in processes)
    commands = {
        host: f"""
            link add eth0 type veth peer name eth0 netns {other}
            link add wg0 type veth peer name wg0 netns {other}
            address add {HOME}/24 dev eth0
            address add {VPN}/24 dev wg0
            link add docker0 type bridge
            address add {BRIDGE}/24 dev docker0
            link set docker0 up
        """,
        other: """
            address add 198.18.1.2/24 dev eth0
            address add 198.18.8.2/24 dev wg0
            address add 198.18.8.3/24 dev wg0
        """,
    }
    try:
        for space, lines in commands.items():
            for line in lines.strip().splitlines():
                subprocess.run([*within(space), "ip", *line.split()], check=True)
        for space in (host, other):
            for link in ("lo", "eth0", "wg0"):
                subprocess.run([*within(space), "ip", "link", "set", link, "up"], check=True)
        route = ["ip", "route", "add", "172.30.0.0/16", "via", HOME]
        subprocess.run([*within(other), *route], check=True)
        yield host, other
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def test_a_neighbour_and_a_peer_reach_what_is_theirs(spaces: tuple[int, int]) -> None:
    host, other = spaces
    ports = [str(port) for port in (SSH, EXPORTER, SERVICE)]
    server = subprocess.Popen(
        [*within(host), sys.executable, "-c", LISTEN, *ports],
        stdout=subprocess.PIPE,
        text=True,
    )
    ask = (
        "import socket, sys\n"
        "try:\n"
        "    socket.create_connection((sys.argv[2], int(sys.argv[3])), 1, (sys.argv[1], 0))\n"
        "except TimeoutError:\n"
        "    sys.exit(7)\n"
    )

    def reaches(source: str, address: str, port: int) -> bool:
        argv = [*within(other), sys.executable, "-c", ask, source, address, str(port)]
        status = subprocess.run(argv, check=False).returncode
        assert status in (0, 7)
        return status == 0

    try:
        assert server.stdout is not None and server.stdout.readline() == "ready\n"
        # Without the guard all of it is open.
        assert reaches("198.18.1.2", BRIDGE, SSH) and reaches("198.18.8.3", VPN, EXPORTER)
        load = [*within(host), "nft", "-f", "-"]
        subprocess.run(load, input=rules(), text=True, check=True)
        assert reaches("198.18.1.2", HOME, SSH)
        assert not reaches("198.18.1.2", BRIDGE, SSH)
        assert reaches("198.18.8.2", VPN, EXPORTER)
        assert not reaches("198.18.8.3", VPN, EXPORTER)
        assert reaches("198.18.8.3", VPN, SERVICE)
    finally:
        server.kill()
        server.wait()


def test_the_guard_goes_and_comes_with_all_rules() -> None:
    """tests/system/fleet/test_vpn.py restarts nftables on a host."""
    unit = TEMPLATE.parents[1] / "units" / "prime-spark-vpn-guard.service.j2"
    lines = unit.read_text().splitlines()
    assert "After=sysinit.target nftables.service" in lines
    assert {"PartOf=nftables.service", "ReloadPropagatedFrom=nftables.service"} <= set(lines)


def test_verify_misses_a_guard_that_somebody_removed(spaces: tuple[int, int]) -> None:
    """As `systemctl restart nftables` does, which leaves the guard's unit active."""
    host, _ = spaces
    look = [*within(host), sys.executable, "-c", GUARD_PROBLEMS]
    subprocess.run([*within(host), "nft", "-f", "-"], input=rules(), text=True, check=True)
    assert subprocess.check_output(look, cwd=ROOT, text=True) == "[]\n"
    subprocess.run([*within(host), "nft", "flush", "ruleset"], check=True)
    assert "the rules of the VPN's guard are not loaded" in subprocess.check_output(
        look, cwd=ROOT, text=True
    )


def test_a_member_holds_so_many_connections_to_a_port(spaces: tuple[int, int]) -> None:
    host, other = spaces
    # How many connections it gets to each port before it is refused; then it ends one for another.
    ask = (
        "import socket, struct, sys\n"
        "def connect():\n"
        "    return socket.create_connection((sys.argv[1], int(port)), 5, (source, 0))\n"
        "every = []\n"
        "for source, port in (member.split('@') for member in sys.argv[2:]):\n"
        "    held = []\n"
        "    every.append(held)\n"
        "    try:\n"
        "        while len(held) < 9:\n"
        "            held.append(connect())\n"
        "    except ConnectionRefusedError:\n"
        "        pass\n"
        "    print(len(held))\n"
        "    reset = struct.pack('ii', 1, 0)\n"
        "    held[0].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)\n"
        "    held.pop(0).close()\n"
        "    again = None\n"
        "    while again is None:\n"
        "        try:\n"
        "            again = connect()\n"
        "        except ConnectionRefusedError:\n"
        "            pass\n"
        "    held.append(again)\n"
    )
    subprocess.run([*within(host), "nft", "-f", "-"], input=rules(), text=True, check=True)
    server = subprocess.Popen(
        [*within(host), sys.executable, "-c", LISTEN, str(SERVICE), str(FEW_PORT)],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None and server.stdout.readline() == "ready\n"
        members = ["198.18.8.3", "198.18.8.2"]
        asked = [f"{member}@{port}" for member in members for port in (SERVICE, FEW_PORT)]
        argv = [*within(other), sys.executable, "-c", ask, VPN, *asked]
        done = subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=True, timeout=60)
        # One member takes nothing from another.
        assert done.stdout.split() == [str(number) for number in (MANY, FEW, MANY, FEW)]
        # The host itself is not counted.
        argv = [*within(host), sys.executable, "-c", ask, VPN, f"{VPN}@{SERVICE}"]
        done = subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=True, timeout=60)
        assert done.stdout.split() == ["9"]
    finally:
        server.kill()
        server.wait()

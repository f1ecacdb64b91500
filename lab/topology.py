"""The lab on one page: hosts, segments and addresses. Everything else derives from this table."""

from __future__ import annotations

import os
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

GIB = 1024**3
MIB = 1024**2


@dataclass(frozen=True)
class Segment:
    """A layer-2 network: a bridge inside one of the lab's namespaces."""

    name: str
    network: IPv4Network
    gateway: IPv4Address
    bridge_namespace: str
    bridge: str


@dataclass(frozen=True)
class Host:
    """A systemd host; memory in bytes, cpus in cores (capped by what the machine has)."""

    name: str
    segment: Segment
    address: IPv4Address
    suite: str
    memory: int
    cpus: float
    pids: int = 8192

    @property
    def interface(self) -> IPv4Interface:
        """The address with its segment's prefix length."""
        return IPv4Interface(f"{self.address}/{self.segment.network.prefixlen}")


LAN = Segment(
    name="lan",
    network=IPv4Network("10.90.1.0/24"),
    gateway=IPv4Address("10.90.1.1"),
    bridge_namespace="router",
    bridge="lan",
)
INTERNET = Segment(
    name="internet",
    network=IPv4Network("198.51.100.0/24"),
    gateway=IPv4Address("198.51.100.1"),
    bridge_namespace="inet",
    bridge="internet",
)
SEGMENTS = (LAN, INTERNET)
VPN_NETWORK = IPv4Network("10.90.8.0/24")

HOSTS: dict[str, Host] = {
    host.name: host
    for host in (
        Host("control-pc-1", LAN, IPv4Address("10.90.1.10"), "trixie", 3 * GIB, 2.0),
        Host("spark-agent-1", LAN, IPv4Address("10.90.1.11"), "bookworm", 1 * GIB, 1.0),
        Host("nas-1", LAN, IPv4Address("10.90.1.12"), "trixie", 512 * MIB, 1.0),
        Host("primecore1", INTERNET, IPv4Address("198.51.100.11"), "trixie", 4 * GIB, 2.0),
        Host("primecore4", INTERNET, IPv4Address("198.51.100.14"), "trixie", 1 * GIB, 1.0),
    )
}
# `make bench-fleet` measures how runs grow: in a lab of its own, with this many hosts that run
# little beside the hub.
if _light := int(os.environ.get("PRIME_SPARK_LAB_LIGHT", "0")):
    HOSTS = {
        host.name: host
        for host in (
            HOSTS["control-pc-1"],
            *(
                Host(f"light-{n:02}", INTERNET, INTERNET.network[100 + n], "trixie", 512 * MIB, 1.0)
                for n in range(1, _light + 1)
            ),
        )
    }
SUITES = tuple(sorted({host.suite for host in HOSTS.values()}))

# Namespaces that are not hosts.
ROUTER = "router"  # the home router: NAT from the LAN to the internet segment
INET = "inet"  # the internet segment's gateway: resolver, filter and the only way out
REGISTRY = "registry"  # the image registry, on the internet segment
CTL = "ctl"  # the controller's foot in both segments
INFRASTRUCTURE = (INET, ROUTER, REGISTRY, CTL)

RESOLVER = INTERNET.gateway
ROUTER_OUTSIDE = IPv4Address("198.51.100.2")
REGISTRY_ADDRESS = IPv4Address("198.51.100.20")
REGISTRY_PORT = 5000
CTL_LAN = IPv4Address("10.90.1.5")
CTL_INTERNET = IPv4Address("198.51.100.5")

# The one port that the home router forwards, and to whom.
FORWARDED_UDP_PORT = 51820
FORWARDED_TO = HOSTS["control-pc-1"].address

# slirp4netns' own network inside the inet namespace.
SLIRP_NETWORK = IPv4Network("10.0.2.0/24")
SLIRP_RESOLVER = IPv4Address("10.0.2.3")

# Nothing in here is ever reached over a default route; a namespace's connected routes win over it.
UNREACHABLE = tuple(
    IPv4Network(text)
    for text in (
        "10.0.0.0/8",  # covers the LAN and the VPN
        "100.64.0.0/10",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",  # the lab's internet segment
        "224.0.0.0/4",
        "240.0.0.0/4",
    )
)

"""The lab's network: segments, router, way out, resolver, registry's and controller's feet.

All of it lives in named network namespaces below the supervisor's private /run/netns. The
machine's own namespace gets no interface, no route and no rule. Three things keep packets inside:

- every namespace looks connected routes up first, then refuses all lab and private ranges
  (`ip rule`, so that Docker's check of the main table sees nothing), then its default route;
- every namespace of the infrastructure filters with a default of drop;
- the only way out is slirp4netns in `inet`, and its filter lets through TCP to the addresses which
  the resolver found for the machine's configured package sources.
"""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from urllib.parse import urlsplit

from lab import bases
from lab.common import LOGS, NETNS, LabError, run
from lab.topology import (
    CTL,
    CTL_INTERNET,
    CTL_LAN,
    FORWARDED_TO,
    FORWARDED_UDP_PORT,
    HOSTS,
    INET,
    INTERNET,
    LAN,
    REGISTRY,
    REGISTRY_ADDRESS,
    REGISTRY_PORT,
    RESOLVER,
    ROUTER,
    ROUTER_OUTSIDE,
    SEGMENTS,
    SLIRP_RESOLVER,
    SUITES,
    UNREACHABLE,
    VPN_NETWORK,
    Host,
    Segment,
)

TAP = "tap0"
_TOOLS = (
    *("dnsmasq", "docker-registry", "ip", "mmdebstrap", "nc", "nft", "nsenter", "setpriv"),
    *("slirp4netns", "ssh", "ssh-keygen", "systemd-nspawn", "unshare"),
)
_RULE_CONNECTED = 32000
_RULE_EXCEPTION = 32001
_RULE_UNREACHABLE = 32010


@dataclass(frozen=True)
class Sources:
    """The configured package sources: names to resolve, literal addresses, TCP ports."""

    names: tuple[str, ...]
    addresses: tuple[IPv4Address, ...]
    ports: tuple[int, ...]

    def private_addresses(self) -> list[IPv4Address]:
        """Addresses of sources inside a private range (a company's mirror): routed explicitly."""
        found = set(self.addresses)
        for name in self.names:
            try:
                answers = socket.getaddrinfo(name, None, socket.AF_INET, socket.SOCK_STREAM)
            except OSError:
                continue
            found.update(IPv4Address(answer[4][0]) for answer in answers)
        refused = [*UNREACHABLE, *machine_networks()]
        return sorted(a for a in found if any(a in network for network in refused))


def package_sources() -> Sources:
    """Collect the package sources that hosts use (and their proxies, where apt has any)."""
    urls = {line.split()[1] for suite in SUITES for line in bases.sources(suite)}
    urls.update(value for key, value in bases.apt_settings().items() if key.endswith("Proxy"))
    return sources_from_urls(urls)


def sources_from_urls(urls: set[str]) -> Sources:
    """Split URLs into names, addresses and ports."""
    names, addresses, ports = set(), set(), {80, 443}
    for url in urls:
        parts = urlsplit(url)
        if not parts.hostname:
            continue
        if parts.port:
            ports.add(parts.port)
        try:
            addresses.add(IPv4Address(parts.hostname))
        except ValueError:
            names.add(parts.hostname)
    return Sources(tuple(sorted(names)), tuple(sorted(addresses)), tuple(sorted(ports)))


def machine_networks() -> list[IPv4Network]:
    """The subnets that the machine itself is connected to or has routes for."""
    networks = set()
    for route in json.loads(run(["ip", "-4", "-json", "route", "show", "table", "main"]).stdout):
        if route["dst"] != "default":
            networks.add(IPv4Network(route["dst"], strict=False))
    return sorted(networks)


def unreachable_ranges() -> list[IPv4Network]:
    """What no default route may carry."""
    return sorted({*UNREACHABLE, VPN_NETWORK, *(s.network for s in SEGMENTS), *machine_networks()})


def enter(namespace: str) -> list[str]:
    """Command prefix that runs a command in a namespace (from the supervisor's mount namespace)."""
    return ["nsenter", f"--net={NETNS / namespace}", "--"]


# --- rule sets ------------------------------------------------------------------------------


def inet_rules(sources: Sources) -> str:
    """Filter of the way out."""
    ports = ", ".join(map(str, sources.ports))
    literal = ", ".join(map(str, sources.addresses))
    elements = f"elements = {{ {literal} }}" if literal else ""
    return f"""
table inet lab {{
  # Filled by the resolver with what the package sources' names resolve to.
  set sources {{ type ipv4_addr; {elements} }}
  chain input {{
    type filter hook input priority filter; policy drop;
    iifname "lo" accept
    ct state established,related accept
    iifname "{INTERNET.bridge}" ip daddr {RESOLVER} meta l4proto {{ tcp, udp }} th dport 53 accept
    iifname "{INTERNET.bridge}" icmp type echo-request accept
  }}
  chain output {{
    type filter hook output priority filter; policy drop;
    oifname "lo" accept
    ct state established,related accept
    oifname "{TAP}" ip daddr {SLIRP_RESOLVER} meta l4proto {{ tcp, udp }} th dport 53 accept
  }}
  chain forward {{
    type filter hook forward priority filter; policy drop;
    ct state established,related accept
    iifname "{INTERNET.bridge}" oifname "{TAP}" ip saddr {INTERNET.network} ip daddr @sources tcp dport {{ {ports} }} accept
  }}
}}
table ip nat {{
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    oifname "{TAP}" masquerade
  }}
}}
"""  # noqa: E501


def router_rules() -> str:
    """Filter and NAT of the home router: out is free, in is one UDP port."""
    return f"""
table inet lab {{
  chain input {{
    type filter hook input priority filter; policy drop;
    iifname "lo" accept
    ct state established,related accept
    icmp type echo-request accept
  }}
  chain output {{
    type filter hook output priority filter; policy drop;
    oifname "lo" accept
    ct state established,related accept
  }}
  chain forward {{
    type filter hook forward priority filter; policy drop;
    ct state established,related accept
    iifname "{LAN.bridge}" oifname "wan" ip saddr {LAN.network} accept
    iifname "wan" oifname "{LAN.bridge}" ip daddr {FORWARDED_TO} udp dport {FORWARDED_UDP_PORT} ct status dnat accept
  }}
}}
table ip nat {{
  chain prerouting {{
    type nat hook prerouting priority dstnat; policy accept;
    iifname "wan" ip daddr {ROUTER_OUTSIDE} udp dport {FORWARDED_UDP_PORT} dnat to {FORWARDED_TO}
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    oifname "wan" masquerade
  }}
}}
"""  # noqa: E501


def ctl_rules() -> str:
    """Filter of the controller's foot: it opens connections to hosts, nobody opens one to it."""
    hosts = ", ".join(str(host.address) for host in HOSTS.values())
    return f"""
table inet lab {{
  chain input {{
    type filter hook input priority filter; policy drop;
    iifname "lo" accept
    ct state established,related accept
  }}
  chain output {{
    type filter hook output priority filter; policy drop;
    oifname "lo" accept
    ct state established,related accept
    ip daddr {{ {hosts} }} accept
  }}
  chain forward {{
    type filter hook forward priority filter; policy drop;
  }}
}}
"""


def registry_rules() -> str:
    """Filter of the image registry: one port, no connection of its own."""
    return f"""
table inet lab {{
  chain input {{
    type filter hook input priority filter; policy drop;
    iifname "lo" accept
    ct state established,related accept
    ip saddr {INTERNET.network} tcp dport {REGISTRY_PORT} accept
  }}
  chain output {{
    type filter hook output priority filter; policy drop;
    oifname "lo" accept
    ct state established,related accept
  }}
  chain forward {{
    type filter hook forward priority filter; policy drop;
  }}
}}
"""


# --- building -------------------------------------------------------------------------------


def build(sources: Sources) -> None:
    """Create the infrastructure's namespaces with links, addresses, routes and rule sets."""
    exceptions = sources.private_addresses()
    for name in (INET, ROUTER, REGISTRY, CTL):
        _namespace(name, exceptions, forward=name in (INET, ROUTER))
    for segment in SEGMENTS:
        # What stays on a segment is switched, not filtered.
        names = ("bridge/bridge-nf-call-iptables", "bridge/bridge-nf-call-arptables")
        _sysctl(segment.bridge_namespace, dict.fromkeys(names, "0"))
        _ip(
            segment.bridge_namespace,
            f"link add {segment.bridge} type bridge forward_delay 0",
            f"addr add {segment.gateway}/{segment.network.prefixlen} dev {segment.bridge}",
            f"link set {segment.bridge} up",
        )
    _plug(INTERNET, "router", ROUTER, "wan", ROUTER_OUTSIDE)
    _plug(INTERNET, "registry", REGISTRY, "eth0", REGISTRY_ADDRESS)
    _plug(INTERNET, "ctl", CTL, "internet", CTL_INTERNET)
    _plug(LAN, "ctl", CTL, "lan", CTL_LAN)
    _ip(ROUTER, f"route add default via {INTERNET.gateway} dev wan")
    _nft(INET, inet_rules(sources))
    _nft(ROUTER, router_rules())
    _nft(CTL, ctl_rules())
    _nft(REGISTRY, registry_rules())


def build_host(host: Host, exceptions: Sequence[IPv4Address], *, cut: bool = False) -> None:
    """Create a host's namespace; one that is left from its last boot is replaced."""
    remove_host(host)
    _namespace(host.name, exceptions)
    _plug(host.segment, host.name, host.name, "eth0", host.address)
    _ip(host.name, f"route add default via {host.segment.gateway} dev eth0")
    if host.segment is LAN:
        # Longer than the default route, so that the refused ranges do not catch it.
        _ip(host.name, f"route add {INTERNET.network} via {LAN.gateway} dev eth0")
    if cut:
        set_cut(host, cut=True)


def remove_host(host: Host) -> None:
    """Delete a host's namespace and its port on the bridge."""
    namespace = host.segment.bridge_namespace
    # The port first: deleting a namespace frees its links later, and their names with them.
    run(["ip", "-n", namespace, "link", "delete", host.name], check=False)
    if (NETNS / host.name).exists():
        run(["ip", "netns", "delete", host.name])


def set_cut(host: Host, *, cut: bool) -> None:
    """Pull or plug a host's network cable."""
    state = "down" if cut else "up"
    _ip(host.segment.bridge_namespace, f"link set {host.name} {state}")


def _namespace(name: str, exceptions: Sequence[IPv4Address], *, forward: bool = False) -> None:
    run(["ip", "netns", "add", name])
    _sysctl(
        name,
        {
            "ipv6/conf/all/disable_ipv6": "1",
            "ipv6/conf/default/disable_ipv6": "1",
            # A new namespace may inherit the machine's value.
            "ipv4/ip_forward": "1" if forward else "0",
        },
    )
    rules = [f"rule add pref {_RULE_CONNECTED} table main suppress_prefixlength 0"]
    rules += [f"rule add pref {_RULE_EXCEPTION} to {address} table main" for address in exceptions]
    rules += [
        f"rule add pref {_RULE_UNREACHABLE + index} to {network} type unreachable"
        for index, network in enumerate(unreachable_ranges())
    ]
    _ip(name, "link set lo up", *rules)


def _plug(
    segment: Segment, port: str, namespace: str, interface: str, address: IPv4Address
) -> None:
    """Connect a namespace to a segment's bridge."""
    # The same hardware address after every boot, or the neighbours' caches point nowhere.
    hardware = "02:50:" + ":".join(f"{octet:02x}" for octet in address.packed)
    _ip(
        segment.bridge_namespace,
        f"link add {port} type veth peer name {interface} address {hardware} netns {namespace}",
        f"link set {port} master {segment.bridge} up",
    )
    _ip(
        namespace,
        f"addr add {address}/{segment.network.prefixlen} dev {interface}",
        f"link set {interface} up",
    )


def _ip(namespace: str, *commands: str) -> None:
    run(["ip", "-4", "-n", namespace, "-batch", "-"], stdin="\n".join(commands) + "\n")


def _nft(namespace: str, rules: str) -> None:
    run([*enter(namespace), "nft", "-f", "-"], stdin=rules)


def _sysctl(namespace: str, values: dict[str, str]) -> None:
    # A key that this kernel lacks (no IPv6 at all) needs no value.
    script = "".join(
        f"[ ! -e /proc/sys/net/{key} ] || echo {value} > /proc/sys/net/{key}\n"
        for key, value in values.items()
    )
    run([*enter(namespace), "sh", "-e"], stdin=script)


# --- services -------------------------------------------------------------------------------


def slirp_command() -> list[str]:
    """The way out; runs in the machine's own network namespace, its tap lies in `inet`."""
    return [
        "slirp4netns",
        "--configure",
        "--mtu=1500",
        "--disable-host-loopback",
        "--netns-type=path",
        str(NETNS / INET),
        TAP,
    ]


def slirp_ready() -> bool:
    """Whether slirp4netns has set up its tap device."""
    result = run(["ip", "-n", INET, "-4", "route", "show", "default"], check=False)
    return TAP in result.stdout


def dnsmasq_command(sources: Sources, config: Path) -> list[str]:
    """The lab's resolver: it knows the package sources and nothing else."""
    lines = [
        "keep-in-foreground",
        "log-facility=-",
        f"listen-address={RESOLVER}",
        "bind-interfaces",
        "no-hosts",
        "no-resolv",
        "no-poll",
        "user=nobody",
        "pid-file",
        "filter-AAAA",
        "address=/#/",
    ]
    for name in sources.names:
        lines.append(f"server=/{name}/{SLIRP_RESOLVER}")
        lines.append(f"nftset=/{name}/4#inet#lab#sources")
    config.write_text("\n".join(lines) + "\n")
    return [*enter(INET), "dnsmasq", f"--conf-file={config}"]


def log_path(service: str) -> Path:
    """Log file of one of the lab's own services."""
    return LOGS / f"{service}.log"


def check_tools() -> None:
    """Fail early, with the remedy, when the machine lacks something."""
    missing = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if missing:
        raise LabError(f"not installed: {', '.join(missing)}; run lab/install-tools")
    if not Path("/dev/net/tun").exists():
        raise LabError(
            "/dev/net/tun is missing: `modprobe tun` (the way out and WireGuard need it)"
        )

"""WireGuard on one host: keys, the configuration file, and what the running interface shows.

Shared by the modules ``wireguard_key``, ``wireguard_interface`` and ``wireguard_health``. Whatever
holds a private or preshared key stays inside the module that runs on the host.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import functools
import hashlib
import json
import os
from typing import Any

from ansible_collections.prime_spark.fleet.plugins.module_utils import process

PRIVATE_KEY = "/etc/wireguard/private.key"
KNOWN_PEERS = "/etc/wireguard/peers.json"
HEADER = "# Written by Ansible, role wireguard: changes made here are lost."

_PRIME = 2**255 - 19


class WireGuardError(Exception):
    """Something on this host is not as it has to be; the message is for the operator."""


def decode_key(text: str) -> bytes:
    """The 32 bytes of a base64 key. The error never repeats the text: it may be a secret."""
    try:
        raw = base64.b64decode(text.strip(), validate=True)
    except (binascii.Error, ValueError):
        raise WireGuardError("not a WireGuard key: not base64") from None
    if len(raw) != 32:
        raise WireGuardError(f"not a WireGuard key: {len(raw)} bytes instead of 32")
    return raw


def generate_private_key() -> str:
    """A new private key, clamped as `wg genkey` does."""
    raw = bytearray(os.urandom(32))
    raw[0] &= 248
    raw[31] = (raw[31] & 127) | 64
    return base64.b64encode(raw).decode()


def public_key_of(private_key: str) -> str:
    """X25519 of the private key and the base point (RFC 7748).

    In Python, because a key is needed before the tools are installed, and because in this way no
    process ever gets it. It runs in the open only for a local root, who can read the key anyway.
    """
    raw = bytearray(decode_key(private_key))
    raw[0] &= 248
    raw[31] = (raw[31] & 127) | 64
    scalar = int.from_bytes(raw, "little")
    base = 9
    x2, z2, x3, z3, swap = 1, 0, base, 1, 0
    for position in range(254, -1, -1):
        bit = (scalar >> position) & 1
        if swap ^ bit:
            x2, x3, z2, z3 = x3, x2, z3, z2
        swap = bit
        a, b = (x2 + z2) % _PRIME, (x2 - z2) % _PRIME
        aa, bb = a * a % _PRIME, b * b % _PRIME
        e = (aa - bb) % _PRIME
        da, cb = (x3 - z3) * a % _PRIME, (x3 + z3) * b % _PRIME
        x3, z3 = (da + cb) ** 2 % _PRIME, base * (da - cb) ** 2 % _PRIME
        x2, z2 = aa * bb % _PRIME, e * (aa + 121665 * e) % _PRIME
    if swap:
        x2, z2 = x3, z3
    result = x2 * pow(z2, _PRIME - 2, _PRIME) % _PRIME
    return base64.b64encode(result.to_bytes(32, "little")).decode()


def private_key_in(config: str) -> str | None:
    """The private key in the text of a wg-quick file, if there is one."""
    for line in config.splitlines():
        name, _, value = line.partition("=")
        if name.strip().lower() == "privatekey":
            return value.strip()
    return None


@dataclasses.dataclass(frozen=True)
class Peer:
    """One peer as the configuration file names it; ``endpoint`` and ``keepalive`` may be empty."""

    name: str
    address: str
    public_key: str
    preshared_key: str = dataclasses.field(repr=False)
    allowed_ips: tuple[str, ...]
    endpoint: str = ""
    keepalive: int = 0

    def lines(self, preshared_key: str) -> list[str]:
        result = [
            f"# {self.name}",
            "[Peer]",
            f"PublicKey = {self.public_key}",
            f"PresharedKey = {preshared_key}",
            f"AllowedIPs = {', '.join(self.allowed_ips)}",
        ]
        if self.endpoint:
            result.append(f"Endpoint = {self.endpoint}")
        if self.keepalive:
            result.append(f"PersistentKeepalive = {self.keepalive}")
        return result


@dataclasses.dataclass(frozen=True)
class Config:
    """A complete wg-quick file; ``forward`` lets the host pass packets from peer to peer."""

    name: str
    address: str
    listen_port: int
    mtu: int
    private_key: str = dataclasses.field(repr=False)
    forward: bool
    peers: tuple[Peer, ...]

    def forward_rule(self) -> list[str]:
        return ["FORWARD", "-i", self.name, "-o", self.name, "-j", "ACCEPT"]

    def interface_lines(self, private_key: str) -> list[str]:
        result = [
            "[Interface]",
            f"PrivateKey = {private_key}",
            f"Address = {self.address}",
            f"ListenPort = {self.listen_port}",
            f"MTU = {self.mtu}",
        ]
        if self.forward:
            rule = " ".join(self.forward_rule())
            # Who turns forwarding on has to see that the host does not become a router for all the
            # world; Docker does the same, but not where forwarding was on before it came.
            closed = "grep -q 1 /proc/sys/net/ipv4/ip_forward || iptables -w -P FORWARD DROP"
            # And every packet goes out where it came in, of which the kernel would warn its sender.
            quiet = [f"net.ipv4.conf.{where}.send_redirects=0" for where in ("all", self.name)]
            result += [
                f"PostUp = {closed}",
                f"PostUp = sysctl -q -w net.ipv4.ip_forward=1 {' '.join(quiet)}",
                f"PostUp = iptables -w -C {rule} 2>/dev/null || iptables -w -I {rule}",
                f"PostDown = iptables -w -D {rule} 2>/dev/null || true",
            ]
        return result

    def text(self) -> str:
        """The file itself, with its secrets."""
        return self._assemble(self.private_key, {p.public_key: p.preshared_key for p in self.peers})

    def masked(self, before: str | None) -> str:
        """The file without its secrets; says of one only whether it differs from ``before``."""
        old = preshared_keys_in(before or "")
        shown = {}
        for peer in self.peers:
            same = old.get(peer.public_key) in (None, peer.preshared_key)
            shown[peer.public_key] = "(hidden)" if same else "(hidden, differs)"
        old_private = private_key_in(before or "")
        private = "(hidden)" if old_private in (None, self.private_key) else "(hidden, differs)"
        return self._assemble(private, shown)

    def _assemble(self, private_key: str, preshared_keys: dict[str, str]) -> str:
        lines = [HEADER, *self.interface_lines(private_key)]
        for peer in self.peers:
            lines += ["", *peer.lines(preshared_keys[peer.public_key])]
        return "\n".join(lines) + "\n"


def mask(config: str) -> str:
    """Any wg-quick text with the values of its secrets hidden."""
    lines = []
    for line in config.splitlines():
        name = line.partition("=")[0].strip()
        lines.append(
            f"{name} = (hidden)" if name.lower() in ("privatekey", "presharedkey") else line
        )
    return "".join(f"{line}\n" for line in lines)


def preshared_keys_in(config: str) -> dict[str, str]:
    """Preshared keys by public key, out of the text of a wg-quick file."""
    found: dict[str, str] = {}
    public = ""
    for line in config.splitlines():
        name, _, value = line.partition("=")
        key = name.strip().lower()
        if key == "[peer]":
            public = ""
        elif key == "publickey":
            public = value.strip()
        elif key == "presharedkey" and public:
            found[public] = value.strip()
    return found


def sections(config: str) -> tuple[str, str]:
    """Digests of the [Interface] section and of everything after it.

    A difference in the first needs the interface to be restarted, one in the second does not.
    """
    interface: list[str] = []
    rest: list[str] = []
    current = interface
    for line in config.splitlines():
        text = line.strip()
        if text.startswith("["):
            current = interface if text.lower() == "[interface]" else rest
        if text and not text.startswith("#"):
            current.append(text)
    return _digest(interface), _digest(rest)


def _digest(lines: list[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class RunningPeer:
    """One peer as the running interface shows it; times in Unix seconds, 0 for never."""

    public_key: str
    preshared_key: str = dataclasses.field(repr=False)
    endpoint: str
    allowed_ips: frozenset[str]
    latest_handshake: int
    rx_bytes: int
    tx_bytes: int
    keepalive: int


@dataclasses.dataclass(frozen=True)
class Running:
    """The running interface."""

    private_key: str = dataclasses.field(repr=False)
    public_key: str
    listen_port: int
    peers: dict[str, RunningPeer]


def parse_dump(text: str) -> Running:
    """Read `wg show INTERFACE dump`."""

    def number(field: str) -> int:
        return int(field) if field.isdigit() else 0

    def value(field: str) -> str:
        return "" if field == "(none)" else field

    first, *rest = text.splitlines()
    private, public, port, *_ = first.split("\t")
    peers = {}
    for line in rest:
        key, preshared, endpoint, allowed, handshake, received, sent, keepalive = line.split("\t")
        peers[key] = RunningPeer(
            public_key=key,
            preshared_key=value(preshared),
            endpoint=value(endpoint),
            allowed_ips=frozenset(value(allowed).split(",")) - {""},
            latest_handshake=number(handshake),
            rx_bytes=number(received),
            tx_bytes=number(sent),
            keepalive=number(keepalive),
        )
    return Running(value(private), value(public), number(port), peers)


def peer_difference(peer: Peer, running: dict[str, RunningPeer]) -> str:
    """What has to be done to one peer, as a sentence; empty for nothing.

    The endpoint is left out: a peer that moved has another one than the file says, rightly.
    """
    seen = running.get(peer.public_key)
    if seen is None:
        return f"add peer {peer.name}"
    differs = [
        label
        for label, same in (
            ("preshared key", seen.preshared_key == peer.preshared_key),
            ("allowed addresses", seen.allowed_ips == frozenset(peer.allowed_ips)),
            ("keepalive", seen.keepalive == peer.keepalive),
            ("endpoint", bool(seen.endpoint) or not peer.endpoint),
        )
        if not same
    ]
    return f"{', '.join(differs)} of peer {peer.name}" if differs else ""


def peer_differences(wanted: tuple[Peer, ...], running: dict[str, RunningPeer]) -> list[str]:
    """What has to be done to the running peers, one sentence each."""
    changes = [sentence for peer in wanted if (sentence := peer_difference(peer, running))]
    known = {peer.public_key for peer in wanted}
    changes += [f"remove peer {key}" for key in running if key not in known]
    return changes


run = functools.partial(
    process.run, error=WireGuardError, timeout=60, remedy="run the tag wireguard first"
)


def running_interface(name: str) -> Running | None:
    """What runs under that name, or None."""
    if not os.path.exists(f"/sys/class/net/{name}"):
        return None
    try:
        return parse_dump(run(["wg", "show", name, "dump"], timeout=15))
    except WireGuardError:
        return None


def read_text(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8") as handle:
            return handle.read()
    except FileNotFoundError:
        return None


def known_peers(path: str = KNOWN_PEERS) -> dict[str, dict[str, Any]]:
    """The peers recorded on this host by name; an unreadable record counts as none."""
    try:
        record = json.loads(read_text(path) or "{}")
        return {peer["name"]: peer for peer in record.get("peers", [])}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def observed(name: str, forward_rule: list[str]) -> dict[str, str]:
    """What the drift probe compares of an interface: text by name, secrets as digests.

    ``forward_rule`` is the rule of iptables that lets peers reach each other, empty where the host
    forwards nothing. The endpoint of a peer is left out: it may move.
    """

    def digest(*words: str) -> str:
        return hashlib.sha256("\0".join(words).encode()).hexdigest()

    running = running_interface(name)
    if running is None:
        raise WireGuardError("it is not there")
    names = {peer["public_key"]: who for who, peer in known_peers(KNOWN_PEERS).items()}
    shown = json.loads(run(["ip", "-json", "address", "show", "dev", name]))[0]
    routes = json.loads(run(["ip", "-json", "-4", "route", "show", "dev", name]) or "[]")
    path = f"/etc/wireguard/{name}.conf"
    seen = {
        "the configuration": digest(read_text(path) or "", oct(os.stat(path).st_mode)),
        "the record of the peers": digest(read_text(KNOWN_PEERS) or ""),
        "the key": running.public_key,
        "the port": str(running.listen_port),
        "the MTU": str(shown.get("mtu")),
        "the addresses": " ".join(
            sorted(f"{entry['local']}/{entry['prefixlen']}" for entry in shown["addr_info"])
        ),
        "the routes": " ".join(sorted(str(route["dst"]) for route in routes)),
    }
    for key, peer in running.peers.items():
        allowed = sorted(peer.allowed_ips)
        text = digest(peer.preshared_key, *allowed, str(peer.keepalive))
        seen[f"peer {names.get(key, key)}"] = f"{key} {text}"
    if forward_rule:
        rule = ["iptables", "-w", "-C", *forward_rule]
        there = process.attempt(rule).returncode == 0
        forwards = (read_text("/proc/sys/net/ipv4/ip_forward") or "0").strip()
        seen["forwarding"] = f"{there} {forwards}"
    return seen

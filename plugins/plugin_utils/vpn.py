"""The rules of the VPN: one hub that can be reached, addresses within the network, each once."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network
Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

CLIENT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
PUBLIC_KEY = re.compile(r"[A-Za-z0-9+/]{43}=")
# What a host says about itself, with the value that it has when it says nothing.
FIELDS = {
    "wireguard_address": "",
    "wireguard_endpoint": "",
    "wireguard_lan": "",
    "wireguard_lan_endpoint": "",
    "wireguard_network": "",
    "wireguard_role": "spoke",
    "wireguard_state": "present",
}


def network(text: Any) -> Network | None:
    try:
        return ipaddress.ip_network(str(text))
    except ValueError:
        return None


def address(text: Any) -> Address | None:
    try:
        return ipaddress.ip_address(str(text))
    except ValueError:
        return None


def owners(pairs: Iterable[tuple[Any, str]]) -> Iterator[tuple[Any, list[str]]]:
    """Values that more than one host claims, with the hosts."""
    found: dict[Any, list[str]] = {}
    for value, host in pairs:
        found.setdefault(value, []).append(host)
    yield from ((value, hosts) for value, hosts in found.items() if len(hosts) > 1)


def members(names: Iterable[str], values: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """What the hosts of the VPN say about themselves, without `wireguard_` before each name."""
    fleet = {}
    for name in sorted(names):
        entry = {
            field.removeprefix("wireguard_"): str(values[name].get(field) or default)
            for field, default in FIELDS.items()
        }
        entry["address"] = str(address(entry["address"]) or entry["address"])
        if entry["state"] != "absent":
            fleet[name] = entry
    return fleet


def hubs(fleet: Mapping[str, Mapping[str, str]]) -> list[str]:
    """The hosts that want to be the hub; exactly one in a VPN that works."""
    return [name for name, entry in fleet.items() if entry["role"] == "hub"]


def address_problem(name: str, given: Any, vpn: Network | None) -> str:
    """Why a VPN address cannot be one; empty where it can."""
    own = address(given)
    if own is None:
        return f"{name} is {given!r}, expected an address like 10.8.0.3 without a length"
    if vpn is not None and own not in vpn:
        return f"{name} is {own}, expected one within wireguard_network {vpn}"
    if vpn is not None and vpn.num_addresses > 2 and own in (vpn[0], vpn[-1]):
        return f"{name} is {own}, which wireguard_network {vpn} keeps for itself"
    return ""


def problems(fleet: Mapping[str, Mapping[str, str]]) -> Iterator[tuple[str, str]]:
    """Why a VPN of these hosts cannot work: where, and a sentence."""
    for name, entry in fleet.items():
        vpn = network(entry["network"])
        if problem := address_problem("wireguard_address", entry["address"], vpn):
            yield name, problem
    claimed = [(entry["address"], name) for name, entry in fleet.items() if entry["address"]]
    for value, names in owners(claimed):
        sentence = f"wireguard_address is {value} on each, expected one of its own"
        yield ", ".join(names), sentence
    found = hubs(fleet)
    if fleet and len(found) != 1:
        given = ", ".join(found) or "none"
        yield "wireguard", f"the hubs (wireguard_role: hub) are {given}, expected exactly one"
    for hub in found:
        if len(fleet) > 1 and not fleet[hub]["endpoint"]:
            yield (
                hub,
                "wireguard_endpoint is empty, expected the address and port by which the other "
                "hosts reach this hub, such as 198.51.100.2:51820",
            )


def client_problems(
    clients: Iterable[Mapping[str, Any]],
    fleet: Mapping[str, Mapping[str, str]],
    vpn: Network | None,
) -> Iterator[str]:
    """Why devices that no playbook manages cannot join a VPN; a sentence for each that cannot."""
    taken = {entry["address"]: name for name, entry in fleet.items()}
    names = set(fleet)
    for client in clients:
        name, key = str(client.get("name", "")), str(client.get("public_key", ""))
        given = str(client.get("address", ""))
        own = str(address(given))
        if not CLIENT_NAME.fullmatch(name):
            yield f"the name is {name!r}, expected letters, digits, - and _"
        elif name in names:
            yield f"{name} is the name of another peer, expected one of its own"
        elif problem := address_problem(f"the address of {name}", given, vpn):
            yield problem
        elif own in taken:
            yield f"the address of {name} is {own}, which {taken[own]} has"
        elif not PUBLIC_KEY.fullmatch(key):
            yield (
                f"public_key of {name} is {key!r}, expected 44 characters of base64: "
                f"`make wireguard-client NAME={name}` makes a key pair and enters it"
            )
        names.add(name)
        taken.setdefault(own, name)

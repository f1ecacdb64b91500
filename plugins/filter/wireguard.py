"""Filters that turn an inventory into the peers of one host."""

from __future__ import annotations

import base64
import hashlib
import hmac
import ipaddress
import re
from collections.abc import Mapping
from typing import Any

from ansible.errors import AnsibleFilterError

DOCUMENTATION = r"""
name: wireguard
short_description: Peers and pair keys of a WireGuard hub and its spokes
"""

CLIENT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
PUBLIC_KEY = re.compile(r"[A-Za-z0-9+/]{43}=")
# What a host says about itself, with the value that it has when it says nothing.
FIELDS = {
    "wireguard_address": "",
    "wireguard_endpoint": "",
    "wireguard_lan": "",
    "wireguard_lan_endpoint": "",
    "wireguard_role": "spoke",
    "wireguard_state": "present",
}


def wireguard_psk(seed: str, one: str, other: str) -> str:
    """The preshared key of a pair: the same for both, different for every other pair."""
    if len(seed) < 32:
        raise AnsibleFilterError("wireguard_psk_seed has to be at least 32 characters long")
    if one == other:
        raise AnsibleFilterError(f"wireguard_psk: {one} is no pair")
    message = "prime-spark wireguard\0" + "\0".join(sorted((one, other)))
    return base64.b64encode(hmac.digest(seed.encode(), message.encode(), hashlib.sha256)).decode()


def wireguard_fleet(names: list[str], hostvars: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """What the hosts of the VPN say about themselves; refuses a VPN that cannot work."""
    fleet = {}
    for name in sorted(names):
        variables = hostvars[name]
        entry = {}
        for field, default in FIELDS.items():
            entry[field.removeprefix("wireguard_")] = str(variables.get(field, default))
        if entry["state"] == "absent":
            continue
        try:
            entry["address"] = str(ipaddress.ip_address(entry["address"]))
        except ValueError:
            raise AnsibleFilterError(
                f"{name}: wireguard_address is {entry['address']!r}, expected an address "
                "like 10.90.8.3 without a prefix length"
            ) from None
        fleet[name] = entry
    hubs = [name for name, entry in fleet.items() if entry["role"] == "hub"]
    if fleet and len(hubs) != 1:
        raise AnsibleFilterError(
            f"wireguard_role: expected exactly one host to be the hub, got {hubs or 'none'}"
        )
    if hubs and len(fleet) > 1 and not (fleet[hubs[0]]["endpoint"]):
        raise AnsibleFilterError(
            f"{hubs[0]}: wireguard_endpoint is empty, expected the address and port by which the "
            "world reaches the hub"
        )
    owners: dict[str, str] = {}
    for name, entry in fleet.items():
        other = owners.setdefault(entry["address"], name)
        if other != name:
            raise AnsibleFilterError(
                f"wireguard_address {entry['address']} is that of {other} and of {name}"
            )
    return fleet


def wireguard_hub(fleet: Mapping[str, Mapping[str, str]]) -> str:
    """The name of the hub."""
    return next(name for name, entry in fleet.items() if entry["role"] == "hub")


def wireguard_neighbours(fleet: Mapping[str, Mapping[str, str]], host: str) -> list[str]:
    """The hosts that are peers of this one: all others for the hub, the hub for a spoke."""
    if host not in fleet:
        return []
    hub = wireguard_hub(fleet)
    return [name for name in fleet if name != host] if host == hub else [hub]


def wireguard_pair_keys(neighbours: list[str], host: str, seed: str) -> dict[str, str]:
    """The preshared keys of a host's pairs, by the other host's name."""
    return {name: wireguard_psk(seed, host, name) for name in neighbours}


def wireguard_clients(
    clients: list[Mapping[str, Any]], fleet: Mapping[str, Mapping[str, str]], network: str
) -> list[dict[str, str]]:
    """The devices that no playbook manages; refuses those that cannot work beside the fleet."""
    whole = ipaddress.ip_network(network)
    names, owners = set(fleet), {entry["address"]: name for name, entry in fleet.items()}
    checked = []
    for client in clients:
        name = str(client.get("name", ""))
        where = f"wireguard_clients: {name or client}"
        if not CLIENT_NAME.fullmatch(name):
            raise AnsibleFilterError(f"{where}: expected a name of letters, digits, - and _")
        if name in names:
            raise AnsibleFilterError(f"{where}: the name is that of a host or of another client")
        given = str(client.get("address", ""))
        try:
            address = ipaddress.ip_address(given)
        except ValueError:
            raise AnsibleFilterError(
                f"{where}: address is {given!r}, expected one like {whole.network_address + 100}"
            ) from None
        if address not in whole or address in (whole.network_address, whole.broadcast_address):
            raise AnsibleFilterError(f"{where}: address is {given}, expected a host's in {network}")
        other = owners.setdefault(str(address), name)
        if other != name:
            raise AnsibleFilterError(f"{where}: the address {given} is that of {other}")
        key = str(client.get("public_key", ""))
        if not PUBLIC_KEY.fullmatch(key):
            raise AnsibleFilterError(
                f"{where}: public_key is {key!r}, expected 44 characters of base64: "
                f"`make wireguard-client NAME={name}` makes a key pair and enters it"
            )
        names.add(name)
        checked.append({"name": name, "address": str(address), "public_key": key})
    return checked


def wireguard_peers(
    fleet: Mapping[str, Mapping[str, str]],
    host: str,
    keys: Mapping[str, str],
    seed: str,
    network: str,
    keepalive: int,
    clients: list[Mapping[str, Any]] | None = None,
) -> list[dict[str, Any]]:
    """The peers of a host as the module ``wireguard_interface`` takes them (with pair keys)."""
    try:
        whole = ipaddress.ip_network(network)
    except ValueError as error:
        raise AnsibleFilterError(f"wireguard_network is {network!r}: {error}") from None
    hub = wireguard_hub(fleet)
    own = fleet[host]
    if ipaddress.ip_address(own["address"]) not in whole:
        raise AnsibleFilterError(
            f"{host}: wireguard_address is {own['address']}, expected one within {network}"
        )
    peers = []
    for name in wireguard_neighbours(fleet, host):
        entry = fleet[name]
        peer: dict[str, Any] = {
            "name": name,
            "address": entry["address"],
            "public_key": keys.get(name, ""),
            "preshared_key": wireguard_psk(seed, host, name),
            "allowed_ips": [f"{entry['address']}/{whole.max_prefixlen}"],
        }
        if name == hub:
            peer["allowed_ips"] = [str(whole)]
            peer["endpoint"] = wireguard_hub_endpoint(fleet, host)
            peer["keepalive"] = keepalive
        peers.append(peer)
    # Known to the hub alone: spokes reach them through it, as they reach each other.
    for client in wireguard_clients(clients or [], fleet, network) if host == hub else ():
        peers.append(
            {
                **client,
                "preshared_key": wireguard_psk(seed, hub, client["name"]),
                "allowed_ips": [f"{client['address']}/{whole.max_prefixlen}"],
            }
        )
    return peers


def wireguard_keys(
    names: list[str], hostvars: Mapping[str, Any], read: list[Mapping[str, Any]] | None = None
) -> dict[str, str]:
    """Public keys by host: of the hosts of this run, and of those that were read for it."""
    keys = {}
    for name in names:
        key = (hostvars[name].get("__wireguard_key") or {}).get("public_key")
        if key:
            keys[name] = str(key)
    for result in read or []:
        if result.get("public_key"):
            keys[str(result["item"])] = str(result["public_key"])
    return keys


def wireguard_hub_endpoint(fleet: Mapping[str, Mapping[str, str]], host: str) -> str:
    """Where a spoke finds the hub: inside where both stand at one site, else as the world does."""
    hub = wireguard_hub(fleet)
    entry, own = fleet[hub], fleet[host]
    if host == hub:
        return ""
    near = entry["lan"] and entry["lan"] == own["lan"] and entry["lan_endpoint"]
    return entry["lan_endpoint"] if near else entry["endpoint"]


def wireguard_names(endpoints: list[str]) -> list[str]:
    """The endpoints that are names, whose address can change."""
    named = []
    for endpoint in endpoints:
        host = endpoint.rpartition(":")[0].strip("[]")
        try:
            ipaddress.ip_address(host)
        except ValueError:
            if host:
                named.append(endpoint)
    return named


def wireguard_defer(
    host: str,
    hub: str,
    own_key: str,
    hosts_of_run: list[str],
    hosts_still_running: list[str],
    read: list[Mapping[str, Any]],
) -> str:
    """Why the hub cannot be expected to know this host yet; empty where it has to."""
    if host == hub:
        return ""
    if hub in hosts_of_run:
        return "" if hub in hosts_still_running else f"{hub} failed in this run"
    for result in read:
        if result.get("item") != hub:
            continue
        if not result.get("public_key"):
            return f"{hub} could not be reached, or has no key yet"
        if result.get("known_peers", {}).get(host) != own_key:
            return f"{hub} does not know this host yet: run --tags wireguard --limit {hub}"
    return ""


def wireguard_problem(
    host: str,
    hub: str,
    hostvars: Mapping[str, Any],
    views: list[Mapping[str, Any]],
    hosts_of_run: list[str],
    hosts_still_running: list[str],
) -> str:
    """Why a change under the timer cannot stay; empty where it can.

    ``views`` is what peers said who were asked whether they reach this host. The hub decides for
    all hosts of a run: where its change is taken back, theirs have to be.
    """
    own = hostvars[host]["__wireguard_seen"]
    if own["problem"]:
        return str(own["problem"])
    if host != hub and hub in hosts_of_run:
        if hub not in hosts_still_running:
            return f"{hub} could not confirm its own change"
        seen = hostvars[hub].get("__wireguard_seen") or {}
        if seen.get("problem"):
            return f"{hub} takes its own change back ({seen['problem']})"
    asked = [view for view in views if not view.get("unreachable") and not view.get("skipped")]
    if asked and not any(view.get("healthy") for view in asked):
        others = f", nor from {len(asked) - 1} more" if len(asked) > 1 else ""
        said = asked[0].get("msg", "no answer")
        return (
            "expected a peer to reach this host where it knows it, "
            f"not so from {asked[0]['item']}{others}: {said}"
        )
    return ""


def wireguard_waiting(deferred: list[str], read: list[Mapping[str, Any]]) -> list[str]:
    """One sentence for each peer that a later run has to catch up on."""
    sentences = [
        f"deferred: no public key of {name} is known yet, run this host again "
        "once the tag wireguard has run there"
        for name in deferred
    ]
    for result in read:
        name = result.get("item")
        if not result.get("public_key") and name not in deferred:
            sentences.append(f"deferred: {name} could not be read, the key known of it stays")
    return sentences


class FilterModule:
    """The filters of the role ``wireguard``."""

    def filters(self) -> dict[str, Any]:
        return {
            "wireguard_clients": wireguard_clients,
            "wireguard_defer": wireguard_defer,
            "wireguard_fleet": wireguard_fleet,
            "wireguard_hub": wireguard_hub,
            "wireguard_hub_endpoint": wireguard_hub_endpoint,
            "wireguard_keys": wireguard_keys,
            "wireguard_names": wireguard_names,
            "wireguard_neighbours": wireguard_neighbours,
            "wireguard_pair_keys": wireguard_pair_keys,
            "wireguard_peers": wireguard_peers,
            "wireguard_problem": wireguard_problem,
            "wireguard_psk": wireguard_psk,
            "wireguard_waiting": wireguard_waiting,
        }

"""Filters that turn an inventory into the peers of one host."""

from __future__ import annotations

import base64
import hashlib
import hmac
import ipaddress
from collections.abc import Mapping
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.prime_spark.fleet.plugins.plugin_utils.vpn import (
    address_problem,
    client_problems,
    hubs,
    members,
    problems,
)


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
    fleet = members(names, hostvars)
    for where, sentence in problems(fleet):
        raise AnsibleFilterError(f"{where}: {sentence}")
    return fleet


def wireguard_hub(groups: Mapping[str, list[str]], hostvars: Mapping[str, Any]) -> str:
    """The name of the hub; empty where there is none."""
    return next(iter(hubs(members(groups.get("wireguard", []), hostvars))), "")


def wireguard_neighbours(fleet: Mapping[str, Mapping[str, str]], host: str) -> list[str]:
    """The hosts that are peers of this one: all others for the hub, the hub for a spoke."""
    if host not in fleet:
        return []
    (hub,) = hubs(fleet)
    return [name for name in fleet if name != host] if host == hub else [hub]


def wireguard_pair_keys(neighbours: list[str], host: str, seed: str) -> dict[str, str]:
    """The preshared keys of a host's pairs, by the other host's name."""
    return {name: wireguard_psk(seed, host, name) for name in neighbours}


def wireguard_clients(
    clients: list[Mapping[str, Any]], fleet: Mapping[str, Mapping[str, str]], network: str
) -> list[dict[str, str]]:
    """The devices that no playbook manages; refuses those that cannot work beside the fleet."""
    for sentence in client_problems(clients, fleet, ipaddress.ip_network(network)):
        raise AnsibleFilterError(f"wireguard_clients: {sentence}")
    return [
        {name: str(client[name]) for name in ("name", "address", "public_key")}
        for client in clients
    ]


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
    (hub,) = hubs(fleet)
    own = fleet[host]
    if problem := address_problem("wireguard_address", own["address"], whole):
        raise AnsibleFilterError(f"{host}: {problem}")
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
    (hub,) = hubs(fleet)
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

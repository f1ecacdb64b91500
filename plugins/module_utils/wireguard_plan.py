"""What a WireGuard interface needs: compares the wanted configuration with file and kernel."""

from __future__ import annotations

import dataclasses
import ipaddress
import json
from typing import Any

from ansible_collections.prime_spark.fleet.plugins.module_utils.wireguard import (
    Config,
    Peer,
    Running,
    WireGuardError,
    decode_key,
    peer_differences,
    public_key_of,
    sections,
)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What has to be done, in words, and whether it could cut the host off."""

    action: str
    changes: list[str]
    risky: bool = False


def wanted_peers(
    given: list[dict[str, Any]], known: dict[str, dict[str, Any]]
) -> tuple[tuple[Peer, ...], list[str]]:
    """The peers with a public key, given now or known from before, and the names of the others."""
    peers, deferred = [], []
    for item in sorted(given, key=lambda peer: str(peer["name"])):
        public = item["public_key"] or known.get(item["name"], {}).get("public_key", "")
        if not public:
            deferred.append(item["name"])
            continue
        for label, key in (("public", public), ("preshared", item["preshared_key"])):
            try:
                decode_key(key)
            except WireGuardError as error:
                raise WireGuardError(f"{label} key of peer {item['name']}: {error}") from None
        peers.append(
            Peer(
                name=item["name"],
                address=item["address"],
                public_key=public,
                preshared_key=item["preshared_key"],
                allowed_ips=tuple(
                    sorted(str(ipaddress.ip_network(entry)) for entry in item["allowed_ips"])
                ),
                endpoint=item["endpoint"],
                keepalive=item["keepalive"],
            )
        )
    return tuple(peers), deferred


def peers_record(config: Config) -> str:
    """The key-free record that the status timer and later runs read."""
    peers = [
        {
            "name": peer.name,
            "address": peer.address,
            "public_key": peer.public_key,
            "endpoint": peer.endpoint,
        }
        for peer in config.peers
    ]
    return json.dumps({"interface": config.name, "peers": peers}, indent=1) + "\n"


def make_plan(
    config: Config,
    before: str | None,
    applied: dict[str, str] | None,
    running: Running | None,
    facts: dict[str, Any],
    known: dict[str, dict[str, Any]],
) -> Plan:
    """Decide between nothing, sync, restart and start.

    ``applied`` are the section digests of the file that was last brought into force, None when no
    run of this boot recorded any; ``facts`` are addresses, routes, mtu, active and forwarding as
    seen; ``known`` is the record of the peers as they were. Only what has a previous state to come
    back to is risky: a repair of what runs, with an unchanged file, is none.
    """
    text = config.text()
    interface, peers = sections(text)
    changes = [] if before == text else ["write the configuration"]
    differs = before is not None and before != text
    if running is None:
        return Plan("start", [*changes, f"start {config.name}"], differs)
    if applied is None:
        old_interface, old_peers = sections(before or "")
        applied = {"interface": old_interface, "peers": old_peers}

    reasons = []
    if applied["interface"] != interface:
        reasons.append("its own section differs from what was started")
    for label, seen, want in (
        ("address", facts["addresses"], [config.address]),
        ("port", running.listen_port, config.listen_port),
        ("MTU", facts["mtu"], config.mtu),
        ("own key", running.public_key, public_key_of(config.private_key)),
    ):
        if seen != want:
            reasons.append(f"{label} is {seen or 'none'}, wanted {want}")
    if not facts["active"]:
        reasons.append("its service is not active")
    if config.forward and not facts["forwarding"]:
        reasons.append("it does not forward between peers")
    if reasons:
        sentences = [f"restart {config.name}: {reason}" for reason in reasons]
        return Plan("restart", [*changes, *sentences], differs)

    differences = peer_differences(config.peers, running.peers)
    missing, left = route_changes(config, facts["routes"])
    differences += [f"add the route to {network}" for network in missing]
    differences += [f"remove the route to {network}" for network in left]
    if not differences and applied["peers"] != peers:
        differences = ["set the peers again"]
    action = "sync" if differences else "none"
    return Plan(action, [*changes, *differences], differs and calls_differently(config, known))


def calls_differently(config: Config, known: dict[str, dict[str, Any]]) -> bool:
    """Whether a known peer that this host calls would be called in another way.

    For a spoke that is its hub: no session is dropped, but a wrong endpoint is noticed only when
    the next one is due.
    """
    return any(
        (before := known.get(peer.name)) is not None
        and any(
            before.get(field) != getattr(peer, field)
            for field in ("endpoint", "public_key", "address")
        )
        for peer in config.peers
        if peer.endpoint
    )


def route_changes(config: Config, routes: dict[str, str]) -> tuple[list[str], list[str]]:
    """Routes that the peers need and do not have, and those that no peer needs any more.

    ``routes`` are those through the interface with their protocol. As wg-quick does: what another
    route covers needs none of its own. The kernel's own, the interface's network, always stays.
    """
    networks = [ipaddress.IPv4Network(route) for route in routes]
    wanted = {
        network
        for peer in config.peers
        for entry in peer.allowed_ips
        if isinstance(network := ipaddress.ip_network(entry), ipaddress.IPv4Network)
    }
    missing = [
        str(network)
        for network in sorted(wanted)
        if not any(network.subnet_of(there) for there in networks)
    ]
    left = [
        route
        for route, protocol in sorted(routes.items())
        if protocol != "kernel" and ipaddress.ip_network(route) not in wanted
    ]
    return missing, left


def client_is_within(config: Config, connection: str) -> bool:
    """Whether the interface would take over the way to the SSH client, `SSH_CONNECTION`'s first."""
    try:
        client = ipaddress.ip_address(connection.split()[0])
    except (IndexError, ValueError):
        return False
    networks = [ipaddress.ip_interface(config.address).network]
    networks += [ipaddress.ip_network(e) for peer in config.peers for e in peer.allowed_ips]
    return any(client in network for network in networks)

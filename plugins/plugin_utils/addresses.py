"""Addresses and networks: where they belong, apart, and claimed once."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping
from typing import Any

from .catalogue import Entry
from .fleet import Fleet
from .vpn import (
    Address,
    Network,
    address,
    client_problems,
    hubs,
    members,
    network,
    owners,
    problems,
)

# As the services take it, in prime_spark/events.py.
DEVICE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}")
ENDPOINT = re.compile(r"^(\[[0-9a-fA-F:]+\]|[\w.-]+):(\d+)$")


def networks(fleet: Fleet, host: str, name: str, entries: list[Any]) -> Iterator[Network]:
    """The networks of a list; refuses what is none."""
    for entry in entries:
        if (found := network(entry)) is not None:
            yield found
        else:
            fleet.refuse(
                host, f"{name} is {entry!r}, expected a network in CIDR notation like 10.8.0.0/24"
            )


def check_vpn(fleet: Fleet) -> None:
    """One network, one hub with an endpoint, an address of its own for each host and device."""
    hosts = fleet.of("wireguard")
    ranges: dict[str, Network] = {}
    for host in hosts:
        values = fleet.values[host]
        given = values.get("wireguard_network")
        for found in networks(fleet, host, "wireguard_network", [given] if given else []):
            ranges[host] = found
        for name in ("wireguard_endpoint", "wireguard_lan_endpoint"):
            text = values.get(name)
            match = ENDPOINT.match(str(text)) if text else None
            if text and (match is None or not 1 <= int(match[2]) <= 65535):
                fleet.refuse(host, f"{name} is {text!r}, expected ADDRESS:PORT")
    if len(set(ranges.values())) > 1:
        listed = ", ".join(sorted({str(found) for found in ranges.values()}))
        fleet.refuse(
            "wireguard", f"wireguard_network differs between hosts ({listed}), expected one"
        )
    vpn = members(hosts, fleet.values)
    for where, sentence in problems(vpn):
        # What is not there at all is refused as a required input.
        if vpn.get(where, {"address": where})["address"]:
            fleet.refuse(where, sentence)
    for hub in hubs(vpn):
        clients = fleet.values[hub].get("wireguard_clients") or []
        for sentence in client_problems(clients, vpn, ranges.get(hub)):
            fleet.refuse(hub, f"wireguard_clients: {sentence}")
    check_overlaps(fleet, set(ranges.values()))


def within(place: Network | Address, found: Network) -> bool:
    """Whether an address or a part of a network lies in a network."""
    if isinstance(place, (ipaddress.IPv4Network, ipaddress.IPv6Network)):
        return found.overlaps(place)
    return place in found


def places(fleet: Fleet) -> list[tuple[str, str, Network | Address]]:
    """Host, variable and value of what lies outside the VPN and outside containers."""
    found: list[tuple[str, str, Network | Address]] = []
    for host, variables in fleet.raw.items():
        values = {**variables, **fleet.values.get(host, {})}
        for name in ("ansible_host", "nas_server"):
            own = address(values.get(name))
            # A host may be managed through the VPN: then it is its own VPN address.
            if own is not None and str(own) != str(values.get("wireguard_address")):
                found.append((host, name, own))
        lan = ENDPOINT.match(str(values.get("wireguard_lan_endpoint", "")))
        if lan and (own := address(lan[1])):
            found.append((host, "wireguard_lan_endpoint", own))
        listed = values.get("nas_server_networks") or []
        if isinstance(listed, list):
            name = "nas_server_networks"
            found += [(host, name, net) for net in networks(fleet, host, name, listed)]
    return found


def check_overlaps(fleet: Fleet, vpns: set[Network]) -> None:
    """VPN, LANs and container networks are apart."""
    elsewhere = places(fleet)
    for host, name, place in elsewhere:
        for vpn in vpns:
            if within(place, vpn):
                fleet.refuse(
                    host,
                    f"{name} is {place}, which lies in the VPN's range wireguard_network {vpn}",
                )
    for host in fleet.of("docker"):
        pools = fleet.values[host].get("docker_address_pools") or []
        bases = [pool.get("base") for pool in pools if isinstance(pool, dict)]
        for pool in networks(fleet, host, "docker_address_pools", bases):
            for vpn in vpns:
                if pool.overlaps(vpn):
                    fleet.refuse(
                        host, f"docker_address_pools has {pool}, which overlaps the VPN's {vpn}"
                    )
            for _, name, place in elsewhere:
                if within(place, pool):
                    fleet.refuse(
                        host, f"docker_address_pools has {pool}, which holds {name} {place}"
                    )


def check_owners(fleet: Fleet) -> None:
    """Hosts, devices and ports that must not be claimed twice."""
    reached = [(v.get("ansible_host"), h) for h, v in fleet.raw.items() if v.get("ansible_host")]
    for value, names in owners(reached):
        fleet.refuse(", ".join(names), f"ansible_host is {value} on each, expected one of its own")
    devices = [(fleet.values[h].get("telemetry_device_id"), h) for h in fleet.of("telemetry")]
    for value, names in owners([pair for pair in devices if pair[0]]):
        fleet.refuse(
            ", ".join(names), f"telemetry_device_id is {value!r} on each, expected one of its own"
        )
    for host, values in fleet.values.items():
        others = values.get("telemetry_other_devices") or []
        if not isinstance(others, list):
            fleet.refuse(host, f"telemetry_other_devices is {others!r}, expected a list of names")
            others = []
        # They become a part of queries and rules.
        for name in [values.get("telemetry_device_id"), *others]:
            if name and not DEVICE.fullmatch(str(name)):
                fleet.refuse(
                    host,
                    f"{name!r} is no name of a device, expected at most 128 letters, digits and "
                    "any of . _ : / -, the first one a letter or a digit",
                )
        ports = [
            (port, name)
            for name, port in values.items()
            if name.endswith("_port")
            and name != "wireguard_port"
            and host in fleet.of(name.removesuffix("_port"))
        ]
        for value, names in owners(ports):
            fleet.refuse(
                host, f"{' and '.join(sorted(names))} are both {value}, expected two ports"
            )


def listening(fleet: Fleet, entries: Mapping[str, Entry]) -> dict[str, list[dict[str, Any]]]:
    """What each host will listen on, and whose process or container that will be."""
    found: dict[str, list[dict[str, Any]]] = {}
    for role, entry in entries.items():
        defaults = fleet.roles[role].defaults if role in fleet.roles else {}
        # Others are ports of services elsewhere, or of UDP.
        names = [n for n, v in defaults.items() if n.endswith("_port") and isinstance(v, int)]
        elsewhere = {f"{s['endpoint']}_port": s["group"] for s in entry.scrape if "group" in s}
        for host in fleet.of(role):
            values = fleet.values[host]
            place = values.get(f"{role}_listen_address")
            for name in names:
                group = elsewhere.get(name)
                if not address(place) or not values.get(name):
                    continue
                if group and host not in fleet.of(group):
                    continue
                listener = {"role": role, "variable": name, "port": values[name], "address": place}
                holders = {"units": [*entry.units], "projects": [*entry.projects]}
                found.setdefault(host, []).append(listener | holders)
    return found

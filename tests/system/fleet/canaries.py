"""Every secret of the fleet is a canary: the vault's, the keys derived from it, the hosts' own.

Values stay on this machine; hosts are asked by digest and answer with names.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from plugins.filter.wireguard import wireguard_psk
from tests.system.fleet.fleet import connect, members, probe, variables
from tests.system.fleet.probes import secrets as scanner


@cache
def secrets() -> dict[str, str]:
    """Every secret in the vault of the lab, and every preshared key made from it, by name."""
    found = {
        key: str(value)
        for name in members("all")
        for key, value in variables(name).items()
        if key.startswith("vault_")
    }
    assert found, "the inventory has no vault"
    too_short = [name for name, value in found.items() if len(value) < scanner.LENGTH]
    assert too_short == [], f"the search takes secrets of {scanner.LENGTH} characters and more"
    hosts = members("wireguard")
    for one in hosts:
        for other in hosts:
            if one < other:
                key = wireguard_psk(found["vault_wireguard_psk_seed"], one, other)
                found[f"preshared key of {one} and {other}"] = key
    return found


@cache
def wanted() -> dict[str, str]:
    """{digest: name} of all secrets in all forms, the private keys of the hosts among them."""
    found = scanner.digests(secrets())
    for name in members("wireguard"):
        keys = probe(connect(name), "secrets", "{}", json.dumps(["own"]))["own"]
        assert keys, f"{name} has no WireGuard key"
        found.update(keys)
    return found


def scan_host(name: str, *parts: str, seconds: int = 180) -> dict[str, Any]:
    """What a host's parts have of the secrets; see the probe."""
    arguments = (json.dumps(wanted()), json.dumps(parts))
    return dict(probe(connect(name), "secrets", *arguments, seconds=seconds))


def scan(data: bytes) -> list[str]:
    """Names of the secrets in data on this machine."""
    return scanner.names_in(data, wanted())

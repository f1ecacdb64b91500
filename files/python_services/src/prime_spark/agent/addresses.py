"""Which network addresses a URL given by somebody else may lead to."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
# Tunnels whose far end is an IPv4 address; nobody needs them to fetch a file.
_TUNNELS = (ipaddress.IPv6Network("2002::/16"), ipaddress.IPv6Network("2001::/32"))


def refusal(address: Address, allowed: Sequence[Network]) -> str:
    """Return why `address` must not be connected to; empty when it may be.

    Public addresses may, those in `allowed` may, except the ones that mean the local link, nobody
    or many. IPv6 addresses that stand for an IPv4 address are checked by that one.
    """
    address = _inner(address)
    reason = ""
    if address.is_link_local:
        reason = "is a link-local address"
    elif address.is_multicast or address.is_unspecified:
        reason = "is not the address of one host"
    elif any(address in network for network in allowed):
        return ""
    elif address.is_loopback:
        reason = "is a loopback address"
    elif any(address in tunnel for tunnel in _TUNNELS):
        reason = "is an address of a tunnel"
    elif not address.is_global or address.is_reserved or _is_site_local(address):
        reason = "is not a public address"
    return f"{address} {reason}" if reason else ""


def _is_site_local(address: Address) -> bool:
    """Whether it is of the private range that IPv6 had before the present one."""
    return isinstance(address, ipaddress.IPv6Address) and address.is_site_local


def _inner(address: Address) -> Address:
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address in _NAT64 or (int(address) >> 32 == 0 and int(address) > 1):
            return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address

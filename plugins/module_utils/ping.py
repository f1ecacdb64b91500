"""ICMP echo without a ping program, over one interface where that matters."""

from __future__ import annotations

import os
import socket
import struct
import time


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF


def echo_request(identifier: int, sequence: int) -> bytes:
    """An ICMP echo request of 24 bytes."""
    body = b"prime-spark-vpn!"
    head = struct.pack("!BBHHH", 8, 0, 0, identifier, sequence)
    return struct.pack("!BBHHH", 8, 0, checksum(head + body), identifier, sequence) + body


def ping(address: str, timeout: float = 1.0, interface: str = "") -> float | None:
    """Seconds until the address answered an ICMP echo, or None.

    With an ``interface`` the request leaves through it or not at all, whatever the routes say.
    """
    identifier = os.getpid() & 0xFFFF
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as raw:
        started = time.monotonic()
        try:
            if interface:
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())
            raw.sendto(echo_request(identifier, 1), (address, 0))
            while (left := started + timeout - time.monotonic()) > 0:
                raw.settimeout(left)
                packet, sender = raw.recvfrom(1024)
                answer = packet[(packet[0] & 15) * 4 :]
                ours = answer[:2] == b"\0\0" and answer[4:6] == struct.pack("!H", identifier)
                if ours and sender[0] == address:
                    return time.monotonic() - started
        except OSError:
            # No route, no session yet (ENOKEY, EDESTADDRREQ) or a timeout: all mean "not now".
            return None
    return None

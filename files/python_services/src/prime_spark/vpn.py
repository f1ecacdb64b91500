"""State of the WireGuard peers, from the file that a root timer writes without any key in it."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec

DEFAULT_PATH = Path("/run/prime-spark/vpn.json")
# WireGuard renews a session every 120 s while there is traffic, and the keepalive is traffic.
HEALTHY_SECONDS = 180
# The timer runs every few seconds; an older file says nothing about the present.
STALE_SECONDS = 180


class VPNStatusError(Exception):
    """The status file is missing, stale or not what it should be."""


class PeerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One peer. `handshake_seconds` is the age of its last handshake, None when there was none."""

    name: str
    vpn_address: str
    endpoint: str | None
    handshake_seconds: float | None
    rx_bytes: int
    tx_bytes: int

    @property
    def healthy(self) -> bool:
        """Whether the last handshake is younger than `HEALTHY_SECONDS`."""
        return self.handshake_seconds is not None and self.handshake_seconds < HEALTHY_SECONDS


class _Peer(msgspec.Struct):
    name: str
    vpn_address: str
    latest_handshake: int
    rx_bytes: int
    tx_bytes: int
    endpoint: str | None = None


class _Status(msgspec.Struct):
    time: float  # Unix seconds, as latest_handshake
    interface: str
    peers: list[_Peer]


class VPNManager:
    """Reads the state of the VPN; needs no privilege."""

    def __init__(self, path: str | Path = DEFAULT_PATH) -> None:
        self._path = Path(path)

    def get_peer_status(self, now: float | None = None) -> list[PeerStatus]:
        """Return all peers, by name. `now` is in epoch seconds, for tests.

        Raises VPNStatusError when the file is missing, unreadable, malformed or older than
        `STALE_SECONDS`: no answer is better than one from the past.
        """
        now = time.time() if now is None else now
        try:
            status = msgspec.json.decode(self._path.read_bytes(), type=_Status)
        except OSError as error:
            raise VPNStatusError(f"cannot read the VPN's state: {error}") from error
        except msgspec.DecodeError as error:
            raise VPNStatusError(f"{self._path}: {error}") from error
        if (age := now - status.time) > STALE_SECONDS:
            raise VPNStatusError(f"{self._path} is {age:.0f} s old")
        return sorted(
            (
                PeerStatus(
                    name=peer.name,
                    vpn_address=peer.vpn_address,
                    endpoint=peer.endpoint or None,
                    handshake_seconds=(
                        max(0.0, now - peer.latest_handshake) if peer.latest_handshake else None
                    ),
                    rx_bytes=peer.rx_bytes,
                    tx_bytes=peer.tx_bytes,
                )
                for peer in status.peers
            ),
            key=lambda peer: peer.name,
        )

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prime_spark.vpn import VPNManager, VPNStatusError

NOW = 1_780_000_000


def write(path: Path, handshakes: dict[str, int], age: int = 5) -> VPNManager:
    status: dict[str, Any] = {
        "time": NOW - age,
        "interface": "wg0",
        "peers": [
            {
                "name": name,
                "vpn_address": "10.8.0.3",
                "endpoint": "198.51.100.7:51820",
                "latest_handshake": handshake,
                "rx_bytes": 1,
                "tx_bytes": 2,
            }
            for name, handshake in handshakes.items()
        ],
    }
    path.write_text(json.dumps(status))
    return VPNManager(str(path))


def test_handshake_decides(tmp_path: Path) -> None:
    vpn = write(
        tmp_path / "vpn.json",
        {"d": 0, "c": NOW + 10, "b": NOW - 180, "a": NOW - 179},
    )
    peers = vpn.get_peer_status(now=NOW)
    assert [(peer.name, peer.healthy, peer.handshake_seconds) for peer in peers] == [
        ("a", True, 179),
        ("b", False, 180),
        ("c", True, 0),
        ("d", False, None),
    ]
    assert (peers[0].vpn_address, peers[0].rx_bytes, peers[0].tx_bytes) == ("10.8.0.3", 1, 2)
    assert peers[0].endpoint == "198.51.100.7:51820"


def test_old_state_is_no_state(tmp_path: Path) -> None:
    write(tmp_path / "vpn.json", {}, age=180).get_peer_status(now=NOW)
    with pytest.raises(VPNStatusError, match="181 s old"):
        write(tmp_path / "vpn.json", {}, age=181).get_peer_status(now=NOW)


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"time":"2026-01-01T00:00:00","interface":"wg0","peers":[]}']
)
def test_unusable_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "vpn.json").write_text(text)
    with pytest.raises(VPNStatusError, match=r"vpn\.json"):
        VPNManager(tmp_path / "vpn.json").get_peer_status()


def test_absent_file(tmp_path: Path) -> None:
    with pytest.raises(VPNStatusError, match="cannot read"):
        VPNManager(tmp_path / "absent").get_peer_status()

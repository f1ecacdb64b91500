"""The program that publishes the VPN's state: one process, as long as the interface is there."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from pathlib import Path

PROGRAM = Path(__file__).resolve().parents[2] / "roles/wireguard/files/status/vpn"
PEERS = {
    "interface": "wg0",
    "peers": [
        {"name": "hub", "address": "10.90.8.2", "public_key": "KEY=", "endpoint": "home.test:51820"}
    ],
}
# Answers as `wg` does, with the handshake that a file says; notes what it is told to set.
WG = """#!/bin/sh
if [ "$1" = set ]; then echo "$@" >> {directory}/set; exit; fi
[ -e {directory}/handshake ] || exit 1
printf 'PRIVATE\\tPUBLIC\\t51820\\toff\\n'
row="KEY=\\tPSK\\t198.51.100.2:51820\\t10.90.8.0/24"
printf "$row\\t%s\\t5\\t7\\t25\\n" "$(cat {directory}/handshake)"
"""
SYSTEMCTL = "#!/bin/sh\necho $@ >> {directory}/asked\n"


def test_state_is_published_until_the_interface_is_gone(tmp_path: Path) -> None:
    for name, text in (("wg", WG), ("systemctl", SYSTEMCTL)):
        (tmp_path / name).write_text(text.format(directory=tmp_path))
        (tmp_path / name).chmod(0o755)
    (tmp_path / "peers.json").write_text(json.dumps(PEERS))
    # The same program, with its two paths in the test's directory.
    program = PROGRAM.read_text()
    for path, name in (
        ("/etc/wireguard/peers.json", "peers"),
        ("/run/prime-spark/vpn.json", "vpn"),
    ):
        assert f'"{path}"' in program
        program = program.replace(f'"{path}"', f'"{tmp_path}/{name}.json"')
    (tmp_path / "vpn").write_text(program)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listener.bind(str(tmp_path / "notify"))
    listener.settimeout(20)
    environment = {
        **os.environ,
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "NOTIFY_SOCKET": str(tmp_path / "notify"),
    }

    def published() -> tuple[int, int, int]:
        assert listener.recv(100) == b"READY=1\nWATCHDOG=1"
        (peer,) = json.loads((tmp_path / "vpn.json").read_text())["peers"]
        return peer["latest_handshake"], peer["rx_bytes"], peer["tx_bytes"]

    def handshake(when: int) -> None:
        (tmp_path / "new").write_text(str(when))
        (tmp_path / "new").rename(tmp_path / "handshake")

    handshake(2**31)  # Later than now: the peer is there, nothing has to be looked up.
    # As the role's unit starts it.
    command = ["/usr/bin/python3", "-IS", str(tmp_path / "vpn"), "wg0", "0.1"]
    with subprocess.Popen(command, env=environment) as process:
        try:
            assert published() == (2**31, 5, 7)
            assert not (tmp_path / "set").exists()
            handshake(1)
            published()
            assert [published()[0] for _ in range(2)] == [1, 1]
            wanted = "set wg0 peer KEY= endpoint home.test:51820"
            assert wanted in (tmp_path / "set").read_text().splitlines()
            assert "PRIVATE" not in (tmp_path / "vpn.json").read_text()
            assert "PSK" not in (tmp_path / "vpn.json").read_text()
            (tmp_path / "handshake").unlink()
            assert process.wait(20) == 1
        finally:
            process.kill()
    assert json.loads((tmp_path / "vpn.json").read_text())["peers"][0]["endpoint"] is None
    # A unit that believes to run is restarted.
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked[-1] == "restart --no-block wg-quick@wg0.service"

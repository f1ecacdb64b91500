"""Which TCP ports answer a neighbour, whatever address it writes on its packets.

The argument is JSON: {"targets": [[address, neighbour], ...], "ports": [[first, last], ...]}. Every
packet goes to the hardware address of the `neighbour`, an address of this host's own segment, so
that no route, here or on the way, decides what is tried: 127.0.0.1 or the address of a container of
the neighbour can be probed as well. Needs root.

Prints {address: {"open": [ports], "closed": number, "silent": number}}; a port that says
nothing is asked twice, closed are those that refuse.
"""

import contextlib
import json
import re
import select
import socket
import struct
import subprocess
import sys
import time
from typing import Any

INTERFACE = "eth0"
ETH_IP = 0x0800
SYN, RST, ACK = 2, 4, 16
ROUNDS = 2
# After the last packet of a round; an answer takes milliseconds, a busy machine seconds.
QUIET_SECONDS = 1.0
BURST = 200
SO_RCVBUFFORCE = 33


def own_address() -> str:
    shown = subprocess.run(
        ["ip", "-json", "-4", "address", "show", "dev", INTERFACE], capture_output=True, check=True
    )
    return str(json.loads(shown.stdout)[0]["addr_info"][0]["local"])


def hardware(address: str) -> bytes:
    """The hardware address of a neighbour, asked for if it is not known yet."""
    with contextlib.suppress(OSError), socket.socket() as stream:
        stream.settimeout(2)
        stream.connect((address, 22))
    shown = subprocess.run(
        ["ip", "neighbour", "show", "dev", INTERFACE, address], capture_output=True, text=True
    )
    found = re.search(r"lladdr (\S+)", shown.stdout)
    if not found:
        sys.exit(f"{address} is no neighbour on {INTERFACE}")
    return bytes.fromhex(found[1].replace(":", ""))


def checksum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


class Scan:
    """One target; the source port tells its answers from those of another one."""

    def __init__(self, wire: socket.socket, target: str, neighbour: str, source_port: int) -> None:
        self.wire = wire
        self.target = socket.inet_aton(target)
        self.source_port = source_port
        source = socket.inet_aton(own_address())
        mine = wire.getsockname()[4]
        header = struct.pack("!BBHHHBBH", 0x45, 0, 40, 1, 0, 64, socket.IPPROTO_TCP, 0)
        header += source + self.target
        header = header[:10] + struct.pack("!H", ~checksum(header) & 0xFFFF) + header[12:]
        self.head = hardware(neighbour) + mine + struct.pack("!H", ETH_IP) + header
        self.tail = struct.pack("!IIBBH", 4711, 0, 0x50, SYN, 1024)
        pseudo = source + self.target + struct.pack("!HH", socket.IPPROTO_TCP, 20)
        self.sum = checksum(pseudo + struct.pack("!H", source_port) + self.tail)
        self.open: set[int] = set()
        self.closed: set[int] = set()

    def packet(self, port: int) -> bytes:
        total = self.sum + port
        total = (total & 0xFFFF) + (total >> 16)
        ports = struct.pack("!HH", self.source_port, port)
        return self.head + ports + self.tail + struct.pack("!HH", ~total & 0xFFFF, 0)

    def collect(self, seconds: float) -> bool:
        """Take what has arrived; whether anything of this scan was in it."""
        found = False
        while select.select([self.wire], [], [], seconds)[0]:
            seconds = 0.0
            frame = self.wire.recv(256)[14:]
            start = (frame[0] & 15) * 4
            if frame[9] != socket.IPPROTO_TCP or frame[12:16] != self.target:
                continue
            port, mine = struct.unpack("!HH", frame[start : start + 4])
            if mine != self.source_port:
                continue
            found = True
            flags = frame[start + 13]
            if flags & (SYN | ACK) == SYN | ACK:
                self.open.add(port)
            elif flags & RST:
                self.closed.add(port)
        return found

    def run(self, ports: list[int]) -> dict[str, Any]:
        for _ in range(ROUNDS):
            left = [port for port in ports if port not in self.open and port not in self.closed]
            for count, port in enumerate(left):
                self.send(self.packet(port))
                if count % BURST == 0:
                    self.collect(0.0)
            quiet = time.monotonic()
            while time.monotonic() - quiet < QUIET_SECONDS:
                if self.collect(0.1):
                    quiet = time.monotonic()
        silent = len(ports) - len(self.open) - len(self.closed - self.open)
        return {
            "open": sorted(self.open),
            "closed": len(self.closed - self.open),
            "silent": silent,
        }

    def send(self, frame: bytes) -> None:
        while True:
            try:
                self.wire.send(frame)
                return
            except (BlockingIOError, OSError):
                # The queue of the interface is full.
                self.collect(0.005)


def main() -> None:
    wanted = json.loads(sys.argv[1])
    ports = [port for first, last in wanted["ports"] for port in range(first, last + 1)]
    results = {}
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_IP)) as wire:
        with contextlib.suppress(OSError):
            wire.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 << 20)
        wire.bind((INTERFACE, ETH_IP))
        wire.setblocking(False)
        for index, (address, neighbour) in enumerate(wanted["targets"]):
            results[address] = Scan(wire, address, neighbour, 61000 + index).run(ports)
    print(json.dumps(results))


main()

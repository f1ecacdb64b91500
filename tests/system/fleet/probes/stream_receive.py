"""Receive numbered UDP packets until one says "end".

Arguments: address, port. Prints {"received": different numbers, "highest": number, "missing":
[the first that never came], "gap": longest time between two packets in seconds}.
"""

import json
import socket
import sys
import time

with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stream:
    # The machine may be busy for seconds: what arrived must not be lost here.
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    stream.bind((sys.argv[1], int(sys.argv[2])))
    stream.settimeout(60)
    seen: set[int] = set()
    gap, last = 0.0, None
    while (packet := stream.recv(2048)) != b"end":
        now = time.monotonic()
        gap, last = max(gap, now - (last or now)), now
        seen.add(int.from_bytes(packet[:8], "big"))
missing = sorted(set(range(max(seen, default=0) + 1)) - seen)
print(
    json.dumps(
        {
            "received": len(seen),
            "highest": max(seen, default=-1),
            "missing": missing[:20],
            "gap": round(gap, 3),
        }
    )
)

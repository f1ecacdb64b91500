"""Send numbered UDP packets until a file appears: {"sent": number of packets}.

Arguments: address, port, packets per second, file.
"""

import json
import socket
import sys
import time
from pathlib import Path

address, port, rate, stop = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stream:
    number, started = 0, time.monotonic()
    while not stop.exists():
        stream.sendto(number.to_bytes(8, "big") + b"." * 100, (address, port))
        number += 1
        time.sleep(max(0.0, started + number / rate - time.monotonic()))
    # Any one of them ends the receiver.
    for _ in range(20):
        stream.sendto(b"end", (address, port))
        time.sleep(0.05)
print(json.dumps({"sent": number}))

"""How many samples the collector of this host has ever taken, by its buffer on disk.

Arguments: the buffer's directory, the interval in seconds. Prints {"number", "at"}: the samples
numbered below `number` are those taken before `at` (epoch seconds). Numbers are given out by the
buffer, one for each sample, and outlive kill -9 and reboots. The collector may be off.
"""

import json
import struct
import sys
import time
import zlib
from pathlib import Path

HEADER = struct.Struct("<IIQ")  # payload length, CRC-32, sequence number
CURSOR = struct.Struct("<QI")  # oldest number not yet acknowledged, CRC-32 of it
# A sample is taken right after each multiple of the interval; looked is at some distance from it.
AFTER_TICK, BEFORE_TICK = 1.5, 0.5


def next_number(directory: Path) -> int:
    number, checksum = CURSOR.unpack((directory / "cursor").read_bytes())
    if checksum != zlib.crc32(struct.pack("<Q", number)):
        raise SystemExit("the buffer's cursor is damaged")
    found = int(number)
    for path in directory.glob("*.segment"):
        data, start = path.read_bytes(), 0
        while start + HEADER.size <= len(data):
            length, _, sequence = HEADER.unpack_from(data, start)
            start += HEADER.size + length
            found = max(found, sequence + 1)
    return found


def main(directory: Path, interval: float) -> dict[str, float]:
    while not AFTER_TICK <= (now := time.time()) % interval <= interval - BEFORE_TICK:
        time.sleep(0.1)
    return {"number": next_number(directory), "at": now}


print(json.dumps(main(Path(sys.argv[1]), float(sys.argv[2]))))

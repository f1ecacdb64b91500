"""The buffer's format of earlier releases, read once: append-only segment files and a cursor."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

_HEADER = struct.Struct("<IIQ")  # payload length, CRC-32 of number and payload, sequence number
_CURSOR = struct.Struct("<QI")  # oldest number not yet acknowledged, CRC-32 of it


def take_over(folder: Path) -> Iterator[list[bytes]]:
    """Yield what waits in each segment, oldest first; delete it when the next is asked for.

    A segment that cannot be read stays in the folder; of one that is damaged, what is intact before
    the damage is taken, as its own reader did. Raises OSError when a segment cannot be deleted.
    """
    cursor = folder / "cursor"
    try:
        first, checksum = _CURSOR.unpack(cursor.read_bytes())
        first *= checksum == zlib.crc32(struct.pack("<Q", first))
    except (OSError, struct.error):
        first = 0  # all of it: ingest knows what it has already
    for path in sorted(folder.glob("*.segment")):
        try:
            data = path.read_bytes()
        except OSError:
            continue
        yield list(_payloads(data, first))
        path.unlink()
    cursor.unlink(missing_ok=True)


def _payloads(data: bytes, first: int) -> Iterator[bytes]:
    """Yield the intact records at the beginning of `data` with numbers from `first` on."""
    start = 0
    while start + _HEADER.size <= len(data):
        length, checksum, number = _HEADER.unpack_from(data, start)
        start += _HEADER.size
        payload = data[start : start + length]
        if checksum != zlib.crc32(payload, zlib.crc32(struct.pack("<Q", number))):
            return
        start += length
        if number >= first:
            yield payload

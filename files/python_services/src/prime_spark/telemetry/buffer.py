"""A bounded queue on disk: append-only segments that survive kill -9 and a torn last record.

Layout of the directory:

    lock                      held (flock) by the one process that uses the buffer
    cursor                    sequence number of the oldest record not yet acknowledged
    <20 digits>.segment       records in order; the name is a lower bound of their numbers

A record is a header (payload length, CRC-32 of number and payload, number) and its payload.
Reading stops at the first record of a segment that is incomplete or fails its checksum.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import threading
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

_HEADER = struct.Struct("<IIQ")  # payload length, CRC-32, sequence number
_CURSOR = struct.Struct("<QI")  # sequence number, CRC-32 of it
_NUMBER = struct.Struct("<Q")


class Record(NamedTuple):
    """A buffered payload and its sequence number."""

    number: int
    payload: bytes


class BufferBusyError(Exception):
    """Another process is using the buffer directory."""


@dataclass
class _Segment:
    """One file of the buffer; `pending` counts its unacknowledged records."""

    path: Path
    size: int = 0
    pending: int = 0
    last: int = -1


@dataclass
class BufferStats:
    """What the buffer holds and what it has lost since it was opened."""

    records: int = 0
    bytes: int = 0
    dropped: int = 0
    corrupt_bytes: int = 0
    in_memory: int = 0


class DiskBuffer:
    """First in, first out; `append`, `peek` the oldest, `ack` what was delivered.

    The files never exceed `max_bytes`; when full, the oldest segment goes and its records are
    counted as dropped. While the disk refuses writes, up to `memory_records` records are kept
    in memory, and written as soon as the disk takes them. Methods may be called from any thread.
    """

    def __init__(
        self,
        path: Path,
        max_bytes: int,
        *,
        segment_bytes: int | None = None,
        memory_records: int = 1024,
    ) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._segment_bytes = segment_bytes or max(max_bytes // 16, 128 * 1024)
        self._memory_records = memory_records
        self._mutex = threading.Lock()
        self._segments: deque[_Segment] = deque()
        self._memory: deque[Record] = deque()
        self._active: int | None = None  # descriptor of the last segment, open for appending
        self._offset = 0  # of the oldest unacknowledged record in the first segment
        self._dropped = 0
        self._corrupt_bytes = 0
        self._unsynced = False
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = self._take_lock()
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
            self._cursor_file = os.open(path / "cursor", flags, 0o600)
            self._cursor = self._read_cursor()
            self._next = self._cursor
            self._recover()
        except BaseException:
            os.close(self._lock)
            raise

    def append(self, payload: bytes) -> None:
        """Add a record. Never raises for a full disk: see `stats` for what was lost."""
        if _HEADER.size + len(payload) > self._max_bytes:
            raise ValueError(f"a record of {len(payload)} bytes does not fit into the buffer")
        with self._mutex:
            self._memory.append(Record(self._next, payload))
            self._next += 1
            self._flush_memory()
            while len(self._memory) > self._memory_records:
                self._memory.popleft()
                self._dropped += 1

    def peek(self, max_records: int, max_bytes: int) -> list[Record]:
        """Return the oldest records, at least one if there is any, without removing them."""
        with self._mutex:
            records: list[Record] = []
            budget = max_bytes
            for record in self._unacknowledged(max_bytes):
                budget -= len(record.payload)
                if records and (budget < 0 or len(records) >= max_records):
                    break
                records.append(record)
            return records

    def ack(self, records: Sequence[Record]) -> None:
        """Remove `records`, a leading part of what `peek` returned, for good."""
        if not records:
            return
        with self._mutex:
            last = records[-1].number
            if last < self._cursor:  # dropped meanwhile, to make room
                return
            self._advance(last)
            while self._memory and self._memory[0].number <= last:
                self._memory.popleft()
            self._write_cursor(last + 1)

    def sync(self) -> None:
        """Flush waiting records to the device; does nothing when none are waiting."""
        with self._mutex:
            if self._active is None or not self._unsynced or not self._disk_pending():
                return
            descriptors = [os.dup(self._active), os.dup(self._cursor_file)]
            descriptors.append(os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
            self._unsynced = False
        # Without the mutex: on a memory card this can take seconds.
        try:
            for descriptor in descriptors:
                os.fsync(descriptor)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def stats(self) -> BufferStats:
        """Return what is held and what was lost."""
        with self._mutex:
            return BufferStats(
                records=self._disk_pending() + len(self._memory),
                bytes=self._disk_bytes(),
                dropped=self._dropped,
                corrupt_bytes=self._corrupt_bytes,
                in_memory=len(self._memory),
            )

    def close(self) -> None:
        """Flush to the device and let go of the directory."""
        try:
            self.sync()
        finally:
            with self._mutex:
                self._close_active()
                os.close(self._cursor_file)
                os.close(self._lock)

    # -- opening ------------------------------------------------------------------------------

    def _take_lock(self) -> int:
        lock = os.open(self._path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(lock)
            if error.errno in {errno.EAGAIN, errno.EACCES}:
                raise BufferBusyError(f"{self._path} is in use by another process") from None
            raise
        return lock

    def _recover(self) -> None:
        """Take over the segments a previous process left."""
        for path in sorted(self._path.glob("*.segment")):
            data = path.read_bytes()
            segment = _Segment(path)
            for _start, end, number in _frames(data):
                segment.size = end
                segment.last = number
                self._next = max(self._next, number + 1)
                if number >= self._cursor:
                    segment.pending += 1
                elif not self._segments:
                    self._offset = end
            if segment.size < len(data):
                self._corrupt_bytes += len(data) - segment.size
                os.truncate(path, segment.size)
            if segment.pending:
                self._segments.append(segment)
            else:
                path.unlink()
                if not self._segments:
                    self._offset = 0
        while self._segments and self._disk_bytes() > self._max_bytes:  # the limit was lowered
            self._drop_oldest()

    # -- writing ------------------------------------------------------------------------------

    def _flush_memory(self) -> None:
        """Move records from memory to disk, for as long as the disk takes them."""
        while self._memory:
            try:
                self._write(self._memory[0])
            except OSError:
                return  # full or failing: they stay in memory, the next append tries again
            self._memory.popleft()

    def _write(self, record: Record) -> None:
        frame = _frame(record)
        while self._segments and self._disk_bytes() + len(frame) > self._max_bytes:
            self._drop_oldest()
        if self._active is None or (
            self._segments[-1].size and self._segments[-1].size + len(frame) > self._segment_bytes
        ):
            self._active = self._start_segment(record.number)
        segment = self._segments[-1]
        _append(self._active, frame, segment.size)
        segment.size += len(frame)
        segment.pending += 1
        segment.last = record.number
        self._unsynced = True

    def _start_segment(self, number: int) -> int:
        path = self._path / f"{number:020d}.segment"
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        descriptor = os.open(path, flags, 0o600)
        self._close_active()
        self._segments.append(_Segment(path))
        return descriptor

    def _drop_oldest(self) -> None:
        """Give up the oldest segment to make room."""
        segment = self._segments[0]
        self._dropped += segment.pending
        self._remove_first()
        if segment.last >= self._cursor:
            self._write_cursor(segment.last + 1)

    def _remove_first(self) -> None:
        segment = self._segments.popleft()
        if not self._segments:
            self._close_active()
        self._offset = 0
        segment.path.unlink(missing_ok=True)

    def _close_active(self) -> None:
        if self._active is not None:
            os.close(self._active)
            self._active = None

    # -- reading ------------------------------------------------------------------------------

    def _unacknowledged(self, read_bytes: int) -> Iterator[Record]:
        """Yield records from the oldest on, disk first: what is in memory is newer."""
        while (
            self._segments
            and self._segments[0].pending
            and not self._read(self._segments[0], self._offset, 1)
        ):
            # The oldest record has gone bad since it was written: its segment cannot be read on.
            self._corrupt_bytes += self._segments[0].size - self._offset
            self._drop_oldest()
        offset = self._offset
        for segment in list(self._segments):
            while found := self._read(segment, offset, read_bytes):
                for end, record in found:
                    offset = end
                    yield record
            if offset < segment.size:
                return  # a bad record: it has to become the oldest before it is given up
            offset = 0
        yield from self._memory

    def _read(self, segment: _Segment, offset: int, want: int) -> list[tuple[int, Record]]:
        """Return (end offset, record) of about `want` bytes of records, at least one."""
        with segment.path.open("rb") as file:
            file.seek(offset)
            data = file.read(min(segment.size - offset, max(want, 4096)))
            if len(data) >= _HEADER.size:
                length = _HEADER.unpack_from(data)[0]
                missing = _HEADER.size + length - len(data)
                if 0 < missing <= segment.size - offset - len(data):
                    data += file.read(missing)
        return [
            (offset + end, Record(number, data[start + _HEADER.size : end]))
            for start, end, number in _frames(data)
        ]

    def _advance(self, last: int) -> None:
        """Let go of the records on disk with numbers up to `last`."""
        while self._segments and self._segments[0].last <= last:
            if len(self._segments) == 1 and self._active is not None:
                # Reuse the file: in the steady state the buffer stays one small file.
                os.ftruncate(self._active, 0)
                self._segments[0].size = self._segments[0].pending = self._offset = 0
                return
            self._remove_first()
        if not self._segments:
            return
        segment = self._segments[0]
        while found := self._read(segment, self._offset, 65536):
            for end, record in found:
                if record.number > last:
                    return
                self._offset = end
                segment.pending -= 1

    def _disk_pending(self) -> int:
        return sum(segment.pending for segment in self._segments)

    def _disk_bytes(self) -> int:
        return sum(segment.size for segment in self._segments)

    # -- cursor -------------------------------------------------------------------------------

    def _read_cursor(self) -> int:
        """Return the stored cursor; 0 replays everything, which is safe."""
        data = os.pread(self._cursor_file, _CURSOR.size, 0)
        if len(data) != _CURSOR.size:
            self._write_cursor(0)  # claims the space now, so that a full disk cannot stop it later
            return 0
        number, checksum = _CURSOR.unpack(data)
        return number if checksum == zlib.crc32(_NUMBER.pack(number)) else 0

    def _write_cursor(self, number: int) -> None:
        self._cursor = number
        data = _CURSOR.pack(number, zlib.crc32(_NUMBER.pack(number)))
        try:
            os.pwrite(self._cursor_file, data, 0)
        except OSError:
            # Costs repeated records after a restart, which ingest recognises; not worth failing.
            self._unsynced = True


def _append(descriptor: int, frame: bytes, size: int) -> None:
    """Write `frame` at the end of a file of `size` bytes, wholly or not at all."""
    try:
        written = os.write(descriptor, frame)
    except OSError:
        written = 0
        raise
    finally:
        if written < len(frame):
            os.ftruncate(descriptor, size)
    if written < len(frame):
        raise OSError(errno.ENOSPC, "the disk took only a part of the record")


def _frame(record: Record) -> bytes:
    number = _NUMBER.pack(record.number)
    checksum = zlib.crc32(record.payload, zlib.crc32(number))
    return _HEADER.pack(len(record.payload), checksum, record.number) + record.payload


def _frames(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield (start, end, number) of the intact records at the beginning of `data`."""
    start = 0
    while start + _HEADER.size <= len(data):
        length, checksum, number = _HEADER.unpack_from(data, start)
        end = start + _HEADER.size + length
        if end > len(data):
            return
        payload = memoryview(data)[start + _HEADER.size : end]
        if checksum != zlib.crc32(payload, zlib.crc32(_NUMBER.pack(number))):
            return
        yield start, end, number
        start = end

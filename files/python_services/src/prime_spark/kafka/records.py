"""Reads the batches of Kafka's log as aiokafka does, and those as well that it cannot read.

aiokafka ends with an exception at a record that the broker took and that no client of its own
sends, and unpacks whatever a batch swells to. Nothing behind such a batch would ever be read again.

No public way leads there: deserializers see keys and values of records that are read already, and
an exception names no offset to go on from. So two classes stand in for private ones of aiokafka.
What they take for granted of these, tests/unit/test_records.py says; the range of versions in
pyproject.toml ends where nobody has looked.
"""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import aiokafka.consumer.fetcher
import cramjam
from aiokafka.record.default_records import DefaultRecordBatch, _DefaultRecordBatchPy
from aiokafka.record.memory_records import _MemoryRecordsPy

# Clients fill a batch up to 1 MiB, before it is packed.
_MAX_UNPACKED = 16 * 1024 * 1024


class UnreadError(ValueError):
    """A record stands for a batch that is not unpacked, for it swells too much."""


class _Unread(bytes):
    """The value of such a record: the batch as it lies in Kafka."""


def check_read(value: bytes | None) -> None:
    """Raise UnreadError for the value of a record that stands for a batch."""
    if isinstance(value, _Unread):
        raise UnreadError(f"a batch of more than {_MAX_UNPACKED >> 20} MiB once unpacked")


def install() -> None:
    """Make every consumer of this process read this way."""
    if not hasattr(aiokafka.consumer.fetcher, "MemoryRecords"):
        raise ImportError("aiokafka reads batches in a way that prime_spark does not know")
    aiokafka.consumer.fetcher.MemoryRecords = _Batches


class _Batches(_MemoryRecordsPy):  # type: ignore[misc]
    """The batches of an answer of the broker, which are of format 2: it has no others.

    Instead of aiokafka's MemoryRecords, the only place where a batch is still as it came.
    """

    def next_batch(self, *_: Any) -> Any:
        data = self._next_slice
        if data is None:
            return None
        self._cache_next()
        return _Batch(data)


class _Batch:
    """A batch, read by aiokafka's fast parser if that can."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._batch = DefaultRecordBatch(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)

    def __iter__(self) -> Iterator[Any]:
        if _swells(self._batch.compression_type, self._data[_HEADER_BYTES:]):
            return iter([_Record(self._batch.next_offset - 1, _Unread(self._data))])
        try:
            return iter(list(self._batch))
        except UnicodeDecodeError:
            return iter(list(_LenientBatch(self._data)))

    def __next__(self) -> Any:
        return next(self._batch)


class _Record(NamedTuple):
    """What a consumer asks of a record."""

    offset: int
    value: bytes
    key: bytes | None = None
    timestamp: int = 0
    timestamp_type: int = 0
    checksum: int | None = None
    headers: tuple[tuple[str, bytes | None], ...] = ()


_HEADER_BYTES = _DefaultRecordBatchPy.HEADER_STRUCT.size


def _swells(compression: int, data: memoryview) -> bool:
    """Whether a batch's packed records are of more than _MAX_UNPACKED bytes."""
    if compression == _DefaultRecordBatchPy.CODEC_GZIP:
        # At most 1032 times as much: a collector's batches are all small enough.
        if len(data) * 1032 <= _MAX_UNPACKED:
            return False
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as unpacking:
            return any(_swollen(unpacking.read, _MAX_UNPACKED))
    unpack = _INTO.get(compression)
    if unpack is None:  # not packed; snappy makes no more than some twenty times as much
        return False
    try:
        # Pages that are not written to take no memory.
        unpack(data, bytearray(_MAX_UNPACKED))
    except cramjam.DecompressionError:
        return True
    return False


def _swollen(read: Callable[[int], bytes], limit: int) -> Iterator[bool]:
    """Yield, piece by piece, whether more than `limit` bytes were read."""
    while piece := read(64 * 1024):
        limit -= len(piece)
        yield limit < 0


_INTO: dict[int, Callable[[memoryview, bytearray], int]] = {
    _DefaultRecordBatchPy.CODEC_LZ4: cramjam.lz4.decompress_into,
    _DefaultRecordBatchPy.CODEC_ZSTD: cramjam.zstd.decompress_into,
}


class _LenientBatch(_DefaultRecordBatchPy):  # type: ignore[misc]
    """A batch with a header whose name is no UTF-8.

    Of aiokafka's two parsers the one in Python: in its bytes the one place can be changed at which
    a name is decoded.
    """

    _buffer: bytearray

    def _maybe_uncompress(self) -> None:
        super()._maybe_uncompress()
        self._buffer = _LenientBytes(self._buffer)


class _LenientBytes(bytearray):
    """Bytes of which every part is text."""

    def __getitem__(self, index: Any) -> Any:
        found = super().__getitem__(index)
        return _LenientBytes(found) if isinstance(found, bytearray) else found

    def decode(self, encoding: str = "utf-8", errors: str = "replace") -> str:  # noqa: ARG002
        return super().decode(encoding, "replace")

"""Events as rows in PostgreSQL's binary COPY format.

Rows are encoded here, a message at a time, because an event of several metrics shares most of its
bytes: that is several times faster than tuples that the driver encodes field by field. Format:
https://www.postgresql.org/docs/current/sql-copy.html#SQL-COPY-FILE-FORMATS-BINARY
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import NamedTuple

import msgspec

from prime_spark.events import ApiEvent, Event, Inference, Telemetry

# Signature, flags, length of a header extension; and what ends the rows.
COPY_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
COPY_TRAILER = b"\xff\xff"

_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_NULL = b"\xff\xff\xff\xff"
_LENGTH = struct.Struct("!i")
_FLOAT = struct.Struct("!id")
_VALUE = struct.Struct("!d")
_INT2 = struct.Struct("!ih")
_INT8 = struct.Struct("!iq")
_START = struct.Struct("!hiq")  # number of fields, then a time


@dataclass(frozen=True, eq=False)  # hashed once per message: by identity
class Table:
    """A table, its columns in the order of the rows made for it, and its primary key."""

    name: str
    columns: tuple[str, ...]
    key: tuple[str, ...]


DEVICE_METRICS = Table(
    "device_metrics",
    ("time", "device_id", "metric_name", "value", "metadata"),
    ("device_id", "metric_name", "time"),
)
AI_INFERENCE_RESULTS = Table(
    "ai_inference_results",
    (
        "time", "event_id", "model_name", "input_tokens", "output_tokens", "prompt_chars",
        "response_chars", "latency_ms", "source", "metadata",
    ),
    ("event_id", "time"),
)  # fmt: skip
API_EVENTS = Table(
    "api_events",
    (
        "time", "event_id", "method", "endpoint", "status", "duration_ms", "user_name", "metadata",
    ),
    ("event_id", "time"),
)  # fmt: skip
TABLES = (DEVICE_METRICS, AI_INFERENCE_RESULTS, API_EVENTS)


class Rows(NamedTuple):
    """The rows of one event, `number` of them, ready for COPY.

    All are of one `day` (counted from an epoch): no chunk of a table is shorter than that.
    """

    table: Table
    number: int
    data: bytes
    day: int


def encode_rows(event: Event) -> Rows:
    """Return the rows that `event` becomes; raises ValueError for what has no encoding."""
    return _ENCODERS[type(event)](event)


def _telemetry(event: Event) -> Rows:
    assert isinstance(event, Telemetry)  # noqa: S101 (for the type checker)
    start = _start(DEVICE_METRICS, event.time) + _text(event.device_id)
    end = _metadata(event)
    pack = _VALUE.pack
    parts: list[bytes] = []
    for name, value in event.metrics.items():
        parts += (start, _metric_name(name), pack(value), end)
    return Rows(DEVICE_METRICS, len(event.metrics), b"".join(parts), _day(event))


def _inference(event: Event) -> Rows:
    assert isinstance(event, Inference)  # noqa: S101
    fields = (
        _start(AI_INFERENCE_RESULTS, event.time),
        _sized(event.event_id.bytes),
        _text(event.model_name),
        _bigint(event.input_tokens),
        _bigint(event.output_tokens),
        _bigint(event.prompt_chars),
        _bigint(event.response_chars),
        _FLOAT.pack(8, event.latency_ms),
        _text(event.source),
        _metadata(event),
    )
    return Rows(AI_INFERENCE_RESULTS, 1, b"".join(fields), _day(event))


def _api_event(event: Event) -> Rows:
    assert isinstance(event, ApiEvent)  # noqa: S101
    fields = (
        _start(API_EVENTS, event.time),
        _sized(event.event_id.bytes),
        _text(event.method),
        _text(event.endpoint),
        _INT2.pack(2, event.status),
        _FLOAT.pack(8, event.duration_ms),
        _NULL if event.user_name is None else _text(event.user_name),
        _metadata(event),
    )
    return Rows(API_EVENTS, 1, b"".join(fields), _day(event))


_ENCODERS: dict[type[Event], Callable[[Event], Rows]] = {
    Telemetry: _telemetry,
    Inference: _inference,
    ApiEvent: _api_event,
}


def _start(table: Table, time: datetime) -> bytes:
    """Return the beginning of a row: its number of fields and its first one, the time."""
    since = time - _EPOCH
    microseconds = (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds
    return _START.pack(len(table.columns), 8, microseconds)


def _day(event: Event) -> int:
    return event.time.toordinal()


def _sized(data: bytes) -> bytes:
    return _LENGTH.pack(len(data)) + data


def _text(text: str) -> bytes:
    return _sized(text.encode())


def _bigint(value: int | None) -> bytes:
    return _NULL if value is None else _INT8.pack(8, value)


def _metadata(event: Event) -> bytes:
    # jsonb in binary is a version byte and the text.
    return _sized(b"\x01" + msgspec.json.encode(event.metadata)) if event.metadata else _NULL


@lru_cache(maxsize=4096)
def _metric_name(name: str) -> bytes:
    """Return the field of a metric's name and the length of the value that follows."""
    return _text(name) + _LENGTH.pack(8)

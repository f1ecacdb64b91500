"""The bytes of a row, read back field by field as PostgreSQL would."""

from __future__ import annotations

import json
import struct
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prime_spark.events import ApiEvent, Event, Inference, Telemetry, new_event_id
from prime_spark.timeseries.rows import Rows, encode_rows

EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
TIME = datetime(2026, 3, 1, 1, 2, 3, 456789, tzinfo=UTC)


def fields(rows: Rows) -> list[list[bytes | None]]:
    """Split the rows of COPY's binary format into their fields."""
    found: list[list[bytes | None]] = []
    data, at = rows.data, 0
    while at < len(data):
        (count,) = struct.unpack_from("!h", data, at)
        at += 2
        row: list[bytes | None] = []
        for _ in range(count):
            (size,) = struct.unpack_from("!i", data, at)
            at += 4
            row.append(None if size < 0 else data[at : at + size])
            at += max(size, 0)
        found.append(row)
    assert at == len(data)
    assert len(found) == rows.number
    assert all(len(row) == len(rows.table.columns) for row in found)
    return found


def time_of(field: bytes | None) -> datetime:
    assert field is not None
    return EPOCH + timedelta(microseconds=struct.unpack("!q", field)[0])


@given(
    time=st.datetimes(timezones=st.just(UTC)),
    values=st.dictionaries(
        st.from_regex(r"[a-z][a-z0-9_]{0,20}", fullmatch=True),
        st.floats(allow_nan=False, allow_infinity=False),
        min_size=1,
        max_size=6,
    ),
    note=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20),
)
def test_telemetry(time: datetime, values: dict[str, float], note: str) -> None:
    event = Telemetry(time=time, device_id="host-1", metrics=values, metadata={"note": note})
    rows = fields(encode_rows(event))
    for row, (name, value) in zip(rows, values.items(), strict=True):
        assert time_of(row[0]) == time
        assert row[1:3] == [b"host-1", name.encode()]
        assert row[3] == struct.pack("!d", value)
        assert row[4] is not None
        assert row[4][:1] == b"\x01"
        assert json.loads(row[4][1:]) == {"note": note}


def test_inference_and_api_event() -> None:
    identity = new_event_id()
    events: list[Event] = [
        Inference(
            time=TIME, event_id=identity, model_name="m", source="edge", latency_ms=1.5,
            input_tokens=2**40,
        ),
        ApiEvent(
            time=TIME, event_id=identity, method="GET", endpoint="/ä", status=404, duration_ms=2.5
        ),
    ]  # fmt: skip
    (first,), (second,) = (fields(encode_rows(event)) for event in events)
    for row in (first, second):
        assert time_of(row[0]) == TIME
        assert row[1] is not None
        assert UUID(bytes=row[1]) == identity
    assert first[2:] == [
        b"m", struct.pack("!q", 2**40), None, None, None, struct.pack("!d", 1.5), b"edge", None,
    ]  # fmt: skip
    assert second[2:] == [
        b"GET", "/ä".encode(), struct.pack("!h", 404), struct.pack("!d", 2.5), None, None,
    ]  # fmt: skip


def test_what_has_no_encoding_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="surrogates"):
        encode_rows(Telemetry(time=TIME, device_id="\ud800", metrics={"a": 1.0}))

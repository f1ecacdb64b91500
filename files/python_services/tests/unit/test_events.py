from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from prime_spark.events import (
    MAX_EVENT_BYTES,
    ApiEvent,
    Event,
    EventError,
    Inference,
    Telemetry,
    check_not_future,
    decode,
    encode,
    new_event_id,
)

NOW = datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)
TELEMETRY: dict[str, Any] = {
    "time": "2026-03-01T12:00:00Z",
    "device_id": "host-1",
    "metrics": {"cpu_percent": 1.5},
}
INFERENCE: dict[str, Any] = {
    "time": "2026-03-01T12:00:00Z",
    "event_id": "0195505b-7c00-7000-8000-000000000000",
    "model_name": "llama",
    "source": "edge",
    "latency_ms": 1,
}
API: dict[str, Any] = {
    "time": "2026-03-01T12:00:00Z",
    "event_id": "0195505b-7c00-7000-8000-000000000000",
    "method": "GET",
    "endpoint": "/health",
    "status": 200,
    "duration_ms": 1.5,
}


def read(event_type: type[Event], base: dict[str, Any], **changes: object) -> Event:
    return decode(json.dumps({**base, **changes}).encode(), event_type)


def test_round_trip() -> None:
    events: list[Event] = [
        Telemetry(time=NOW, device_id="host-1", metrics={"cpu_percent": 12.5}),
        Inference(
            time=NOW, event_id=new_event_id(), model_name="m", source="edge", latency_ms=3.5,
            input_tokens=1, metadata={"text": "ü", "n": None, "b": True, "f": 0.5},
        ),
        ApiEvent(
            time=NOW, event_id=new_event_id(), method="POST", endpoint="/x", status=201,
            duration_ms=2.0, user_name="anna",
        ),
    ]  # fmt: skip
    for event in events:
        assert decode(encode(event), type(event)) == event
        assert event.key


def test_time_is_normalised_to_utc() -> None:
    event = read(Telemetry, TELEMETRY, time="2026-03-01T13:00:00+01:00")
    assert event.time == datetime(2026, 3, 1, 12, tzinfo=UTC)
    assert event.time.tzinfo is UTC
    local = NOW.astimezone(timezone(timedelta(hours=-5)))
    assert b"17:" not in encode(Telemetry(time=local, device_id="h", metrics={"a": 1.0}))


def test_unknown_keys_are_ignored_on_reading() -> None:
    assert read(Telemetry, TELEMETRY, added_later=1) == read(Telemetry, TELEMETRY)


@pytest.mark.parametrize(
    ("event_type", "base", "changes"),
    [
        (Telemetry, TELEMETRY, {"time": "2026-03-01T12:00:00"}),
        (Telemetry, TELEMETRY, {"time": "yesterday"}),
        (Telemetry, TELEMETRY, {"time": 1772366400}),
        (Telemetry, TELEMETRY, {"time": "0001-01-01T00:00:00+14:00"}),
        (Telemetry, TELEMETRY, {"time": "9999-12-31T23:59:59-14:00"}),
        (Telemetry, TELEMETRY, {"device_id": ""}),
        (Telemetry, TELEMETRY, {"device_id": "a\0"}),
        (Telemetry, TELEMETRY, {"device_id": "a\n"}),
        (Telemetry, TELEMETRY, {"device_id": "a" * 129}),
        (Telemetry, TELEMETRY, {"metrics": {}}),
        (Telemetry, TELEMETRY, {"metrics": {"CPU": 1}}),
        (Telemetry, TELEMETRY, {"metrics": {"a" * 65: 1}}),
        (Telemetry, TELEMETRY, {"metrics": {"a": None}}),
        (Telemetry, TELEMETRY, {"metrics": {"a": "1"}}),
        (Telemetry, TELEMETRY, {"metrics": {"a": float("nan")}}),
        (Telemetry, TELEMETRY, {"metrics": {f"m{n}": 1 for n in range(257)}}),
        (Telemetry, TELEMETRY, {"metadata": {"a": "\0"}}),
        (Telemetry, TELEMETRY, {"metadata": {"a\0": 1}}),
        (Telemetry, TELEMETRY, {"metadata": {"a": {"nested": 1}}}),
        (Telemetry, TELEMETRY, {"metadata": {"a": "\ud800"}}),
        (Inference, INFERENCE, {"event_id": "7"}),
        (Inference, INFERENCE, {"latency_ms": -1}),
        (Inference, INFERENCE, {"latency_ms": None}),
        (Inference, INFERENCE, {"input_tokens": -1}),
        (Inference, INFERENCE, {"input_tokens": 2**63}),
        (Inference, INFERENCE, {"input_tokens": 1.5}),
        (Inference, INFERENCE, {"model_name": "a\0b"}),
        (ApiEvent, API, {"status": 99}),
        (ApiEvent, API, {"method": "get"}),
        (ApiEvent, API, {"endpoint": "/\0"}),
        (ApiEvent, API, {"user_name": "\0"}),
    ],
)
def test_refused(event_type: type[Event], base: dict[str, Any], changes: dict[str, Any]) -> None:
    assert read(event_type, base)
    with pytest.raises(EventError):
        read(event_type, base, **changes)


@pytest.mark.parametrize(
    "data",
    [None, b"", b"null", b"[]", b"{", b"\xff", b'"\xff"', b"[" * 100_000, b'{"a":' * 20_000,
     b'{"time":"2026-03-01T12:00:00Z","device_id":"h","metrics":{"a":1e999}}',
     b'{"time":"2026-03-01T12:00:00Z","device_id":"h","metrics":{"a":Infinity}}',
     b'{"time":"2026-03-01T12:00:00Z","device_id":"\xed\xa0\x80","metrics":{"a":1}}'],
)  # fmt: skip
def test_bytes_that_are_no_event(data: bytes | None) -> None:
    with pytest.raises(EventError):
        decode(data, Telemetry)


@given(st.binary(max_size=200))
def test_any_bytes_are_an_event_or_an_event_error(data: bytes) -> None:
    for event_type in (Telemetry, Inference, ApiEvent):
        with pytest.raises(EventError):
            decode(data, event_type)


@given(
    st.dictionaries(st.text(max_size=5), st.none() | st.booleans() | st.text() | st.floats()
                    | st.integers(), max_size=4)
)  # fmt: skip
def test_what_encode_lets_out_decode_takes_in(metadata: dict[str, Any]) -> None:
    try:
        event = Telemetry(time=NOW, device_id="h", metrics={"a": 1.0}, metadata=metadata)
        data = encode(event)
    except ValueError:  # EventError is one
        return
    back = decode(data, Telemetry)
    assert back.time == NOW
    assert encode(back) == data


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_producers_cannot_send_what_is_not_finite(value: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        Telemetry(time=NOW, device_id="h", metrics={"a": value})


def test_producers_cannot_send_what_would_be_refused() -> None:
    with pytest.raises(EventError):
        encode(Telemetry(time=NOW, device_id="h", metrics={"Not Allowed": 1.0}))
    with pytest.raises(EventError, match="more than"):
        encode(
            Telemetry(
                time=NOW, device_id="h", metrics={"a": 1.0}, metadata={"a": "x" * MAX_EVENT_BYTES}
            )
        )


def test_future() -> None:
    event = Telemetry(time=NOW + timedelta(hours=1), device_id="h", metrics={"a": 1.0})
    check_not_future(event, NOW)
    with pytest.raises(EventError, match="future"):
        check_not_future(event, NOW - timedelta(seconds=1))


def test_event_ids_are_uuid_7_in_order() -> None:
    ids = [new_event_id(NOW + timedelta(milliseconds=n)) for n in range(100)]
    assert len(set(ids)) == 100
    assert ids == sorted(ids)
    assert all(event_id.version == 7 for event_id in ids)
    assert all(event_id.variant == "specified in RFC 4122" for event_id in ids)
    assert ids[0].int >> 80 == int(NOW.timestamp() * 1000)

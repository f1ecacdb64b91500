"""The data contract of the fleet: one struct per Kafka topic, JSON on the wire.

Producers and ingest share these types. Decoding is strict about what is stored (types, finite
numbers, names, sizes, text PostgreSQL can hold) and ignores unknown keys, so that a producer may
gain a field before ingest knows it. Times are RFC 3339 with an offset on the wire and aware UTC
datetimes in memory.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time as _time
from datetime import UTC, datetime, timedelta
from typing import Annotated, ClassVar, TypeAlias, TypeVar
from uuid import UUID

import msgspec

MAX_EVENT_BYTES = 64 * 1024
MAX_FUTURE = timedelta(hours=1)
# No collector's full buffer holds an older sample: 64 MiB of the smallest, one every 30 seconds.
MAX_AGE = timedelta(days=180)
_BIGINT_MAX = 2**63 - 1

Scalar: TypeAlias = str | int | float | bool | None
Metadata: TypeAlias = dict[str, Scalar]
Name = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}\Z")]
MetricName = Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z0-9_]{0,63}\Z")]
Count = Annotated[int, msgspec.Meta(ge=0, le=_BIGINT_MAX)]
Milliseconds = Annotated[float, msgspec.Meta(ge=0)]
AwareTime = Annotated[datetime, msgspec.Meta(tz=True)]


class EventError(ValueError):
    """The bytes or values are not an event of their topic; the message says why."""


class Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What all events have: when it happened at the producer, and free-form context."""

    time: AwareTime
    metadata: Metadata = {}

    topic: ClassVar[str]

    def __post_init__(self) -> None:
        if self.time.tzinfo is not UTC:
            try:
                in_utc = self.time.astimezone(UTC)
            except OverflowError:
                raise ValueError("time is outside the calendar once converted to UTC") from None
            msgspec.structs.force_setattr(self, "time", in_utc)
        for key, value in self.metadata.items():
            _check_text(f"metadata key {key!r}", key)
            if isinstance(value, str):
                _check_text(f"metadata[{key!r}]", value)
            elif isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"metadata[{key!r}] is not a finite number")

    @property
    def key(self) -> str:
        """The Kafka key: events with the same key stay in order."""
        raise NotImplementedError


class Telemetry(Event, frozen=True, kw_only=True, omit_defaults=True):
    """One sample of a host. The row key (device_id, metric, time) needs no event id."""

    device_id: Name
    metrics: Annotated[dict[MetricName, float], msgspec.Meta(min_length=1, max_length=256)]

    topic: ClassVar[str] = "edge.telemetry"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in self.metrics.items():
            if not math.isfinite(value):
                raise ValueError(f"metrics[{name!r}] is not a finite number")

    @property
    def key(self) -> str:
        """The device: its samples stay in order."""
        return self.device_id


class Inference(Event, frozen=True, kw_only=True, omit_defaults=True):
    """One answered LLM request. Tokens are None where the backend does not count them."""

    event_id: UUID
    model_name: Name
    source: Name
    latency_ms: Milliseconds
    input_tokens: Count | None = None
    output_tokens: Count | None = None
    prompt_chars: Count | None = None
    response_chars: Count | None = None

    topic: ClassVar[str] = "edge.ai.inference"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_finite("latency_ms", self.latency_ms)

    @property
    def key(self) -> str:
        """The model: its inferences stay in order."""
        return self.model_name


class ApiEvent(Event, frozen=True, kw_only=True, omit_defaults=True):
    """One request the API answered. `endpoint` is the route template, never the raw path."""

    event_id: UUID
    method: Annotated[str, msgspec.Meta(pattern=r"^[A-Z]{1,16}\Z")]
    endpoint: Annotated[str, msgspec.Meta(min_length=1, max_length=512)]
    status: Annotated[int, msgspec.Meta(ge=100, le=599)]
    duration_ms: Milliseconds
    user_name: Annotated[str, msgspec.Meta(max_length=128)] | None = None

    topic: ClassVar[str] = "analytics.events"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_text("endpoint", self.endpoint)
        _check_text("user_name", self.user_name or "")
        _check_finite("duration_ms", self.duration_ms)

    @property
    def key(self) -> str:
        """The endpoint: its requests stay in order."""
        return self.endpoint


E = TypeVar("E", bound=Event)


def encode(event: Event, *, check: bool = True) -> bytes:
    """Return the JSON of `event`; raise EventError when it is larger than MAX_EVENT_BYTES.

    Values are checked when an event is built from bytes; checking again here keeps a producer
    from sending what ingest would refuse. Without `check` for events whose values are the
    producer's own: that is most of what encoding costs.
    """
    try:
        data = msgspec.json.encode(event)
    except (msgspec.ValidationError, ValueError, OverflowError) as error:
        raise EventError(str(error)) from error
    if check:
        decode(data, type(event))
    return data


def decode(data: bytes | None, event_type: type[E]) -> E:
    """Return the event in `data`; raise EventError when it is not one."""
    if data is None:
        raise EventError("no value (a tombstone)")
    if len(data) > MAX_EVENT_BYTES:
        raise EventError(f"{len(data)} bytes, more than the {MAX_EVENT_BYTES} allowed")
    try:
        return msgspec.json.decode(data, type=event_type)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:  # ValidationError included
        raise EventError(_reason(str(error), data)) from None
    except RecursionError:
        raise EventError("nested too deeply") from None


def check_not_ancient(event: Event, now: datetime, max_age: timedelta) -> None:
    """Raise EventError when `event` claims to be from longer ago than `max_age`."""
    if now - event.time > max_age:
        raise EventError(f"time {event.time.isoformat()} is more than {max_age.days} days ago")


def check_not_future(event: Event, now: datetime) -> None:
    """Raise EventError when `event` claims to be more than an hour later than `now`."""
    if event.time - now > MAX_FUTURE:
        raise EventError(f"time {event.time.isoformat()} is more than an hour in the future")


def new_event_id(moment: datetime | None = None) -> UUID:
    """Return a UUIDv7: unique, and ordered by its millisecond of creation."""
    seconds = _time.time() if moment is None else moment.timestamp()
    number = int(seconds * 1000) << 80 | int.from_bytes(os.urandom(10))
    number = number & ~(0xF << 76) | 7 << 76  # the version
    return UUID(int=number & ~(0b11 << 62) | 0b10 << 62)  # the variant


def _reason(error: str, data: bytes) -> str:
    """Return why `data` is no event: msgspec's `error`, but where it is wrong."""
    # It looks for a surrogate's other half beyond the end, when it ends soon.
    if "truncated" in error:
        with contextlib.suppress(ValueError, RecursionError):
            json.loads(data)  # is content with the one half
            return "JSON is malformed: a surrogate without its other half"
    return error


def _check_text(what: str, text: str) -> None:
    """Refuse the one character that JSON allows and PostgreSQL text does not."""
    if "\0" in text:
        raise ValueError(f"{what} contains a NUL character, which PostgreSQL cannot store")


def _check_finite(what: str, value: float) -> None:
    if not math.isfinite(value):
        raise ValueError(f"{what} is not a finite number")

"""Messages to the telemetry topic that are well-formed, nearly so, or not at all."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

DAY = timedelta(days=1)
MAX_AGE = 180 * DAY
MAX_FUTURE = timedelta(hours=1)
COMPRESSIONS = (None, "gzip", "snappy", "lz4", "zstd")


@dataclass
class Message:
    """What is sent, and what has to become of it.

    `fate` is "stored" or "dead" where the contract leaves no choice, None where it does (a time at
    the bound, a spelling that a parser may refuse). What is stored is `time` and what the JSON in
    `value` says.
    """

    value: bytes | None
    key: bytes | None
    fate: str | None
    time: datetime | None = None
    device: str = ""
    headers: list[tuple[str, bytes | None]] = field(default_factory=list)
    timestamp_ms: int | None = None
    compression: str | None = None


class Generator:
    """Makes messages, the same ones for the same `seed`; `now` is what times are relative to.

    `margin` is longer than the last message is on its way after `now`: so far from a bound of time
    it is certain on which side ingest sees a message.
    """

    def __init__(self, seed: int, now: datetime, margin: timedelta) -> None:
        self._random = random.Random(seed)
        self._now = now
        self._margin = margin
        self._number = 0
        # Few hours, for maintenance rolls each one up by itself.
        self._hours = [now - self._random.random() * (MAX_AGE - DAY) for _ in range(40)]

    def sentinel(self) -> Message:
        """Return a message that is good, beyond doubt, and of the present."""
        self._number += 1
        device = f"sentinel-{self._number}"
        moment = self._now + timedelta(microseconds=self._number)
        value = self._document(time=_iso(moment), device_id=device, metrics={"cpu_percent": 1.0})
        return Message(value, device.encode(), "stored", moment, device)

    def message(self) -> Message:
        """Return the next message: a good one with, mostly, something odd about it."""
        self._number += 1
        kinds: list[tuple[int, Callable[[], Message]]] = [
            (20, self._good),
            (12, self._odd_time),
            (12, self._odd_values),
            (8, self._odd_device),
            (6, self._odd_metric),
            (10, self._odd_metadata),
            (4, self._odd_size),
            (6, self._odd_shape),
            (10, self._damaged),
            (2, self._garbage),
        ]
        weights = [weight for weight, _ in kinds]
        (kind,) = self._random.choices([make for _, make in kinds], weights)
        message = kind()
        self._outside(message)
        return message

    # -- the kinds ----------------------------------------------------------------------------

    def _good(self) -> Message:
        return self._telemetry(fate="stored")

    def _odd_time(self) -> Message:
        pick = self._random.randrange(5)
        if pick == 0:  # anywhere in the calendar
            span = datetime.max.replace(tzinfo=UTC) - datetime.min.replace(tzinfo=UTC)
            moment = datetime.min.replace(tzinfo=UTC) + span * self._random.random()
            return self._telemetry(moment, fate=self._fate_at(moment))
        if pick == 1:  # at the bounds
            bound = self._random.choice((self._now - MAX_AGE, self._now + MAX_FUTURE))
            moment = bound + self._margin * self._random.uniform(-2.5, 2.5)
            return self._telemetry(moment, fate=self._fate_at(moment))
        if pick == 2:  # no time at all
            text = self._random.choice(NO_TIMES)
            return self._telemetry(fate="dead", time=text)
        if pick == 3:  # in another spelling
            moment = self._moment()
            spelling = self._random.choice(SPELLINGS)
            return self._telemetry(moment, fate=None, time=spelling(moment))
        moment = self._random.choice(EXTREMES)
        return self._telemetry(moment, fate="dead")

    def _odd_values(self) -> Message:
        raw: dict[str, str] = {}
        fate: str | None = "stored"
        for number in range(self._random.choice((1, 1, 2, 5, 256))):
            raw[f"m{number}"] = repr(self._float())
        if self._random.random() < 0.6:
            text, fate = self._random.choice(NUMBERS)
            raw[self._random.choice(list(raw))] = text
        body = ", ".join(f'"{name}": {text}' for name, text in raw.items())
        return self._telemetry(fate=fate, raw_metrics="{" + body + "}")

    def _odd_device(self) -> Message:
        number = f"{self._number}"
        name, fate = self._random.choice(
            (
                (number, "stored"),
                (f"A.b_c:d/e-{number}", "stored"),
                (f"{'x' * (128 - len(number))}{number}", "stored"),
                (f"{'x' * (129 - len(number))}{number}", "dead"),
                (f"-{number}", "dead"),
                (f"h{number}\n", "dead"),
                (f"h{number}\0", "dead"),
                (f"h {number}", "dead"),
                (f"ü{number}", "dead"),
                (f"\N{ARABIC-INDIC DIGIT ONE}{number}", "dead"),
                (f"\U0001f600{number}", "dead"),
                (f"../../{number}", "dead"),
                (f"'; DROP TABLE device_metrics; --{number}", "dead"),
                ("", "dead"),
                (None, "dead"),
                (self._number, "dead"),
            )
        )
        return self._telemetry(fate=fate, device_id=name)

    def _odd_metric(self) -> Message:
        name, fate = self._random.choice(
            (
                ("a", "stored"),
                ("z" * 64, "stored"),
                ("z" * 65, "dead"),
                ("", "dead"),
                ("A", "dead"),
                ("1a", "dead"),
                ("a\n", "dead"),
                ("a\0", "dead"),
                ("ä", "dead"),
                ("a-b", "dead"),
                ("value); DROP TABLE memory; --", "dead"),
            )
        )
        return self._telemetry(fate=fate, metrics={"fine": 1.0, name: 2.0})

    def _odd_metadata(self) -> Message:
        value, fate = self._random.choice(METADATA)
        key = self._random.choice(("k", "", "ä" * 50, "k.\\\"'", "$1", "\u2028"))
        return self._telemetry(fate=fate, metadata={key: value, "also": self._float()})

    def _odd_size(self) -> Message:
        limit = 64 * 1024
        size = self._random.choice((limit - 1, limit, limit + 1, 2 * limit, 900_000))
        message = self._telemetry(fate="stored" if size <= limit else "dead")
        assert message.value is not None
        message.value += b" " * (size - len(message.value))
        return message

    def _odd_shape(self) -> Message:
        pick = self._random.randrange(6)
        if pick == 0:
            return self._telemetry(fate="stored", unknown=[1, {"a": None}])
        if pick == 1:
            return self._telemetry(fate="dead", metrics=self._random.choice(([], {}, None, 1)))
        if pick == 2:
            many = {f"m{number}": 1.0 for number in range(257)}
            return self._telemetry(fate="dead", metrics=many)
        if pick == 3:
            left_out = self._random.choice(("time", "device_id", "metrics"))
            message = self._telemetry(fate="dead")
            assert message.value is not None
            document = json.loads(message.value)
            del document[left_out]
            message.value = json.dumps(document).encode()
            return message
        if pick == 4:  # the last of two counts, or neither does
            message = self._telemetry(fate=None)
            assert message.value is not None
            message.value = b'{"device_id": "twice", ' + message.value.lstrip()[1:]
            return message
        value = self._random.choice((b"[]", b"null", b"1", b'"x"', b"{}", b"", b"[" * 60_000))
        return Message(value, None, "dead")

    def _damaged(self) -> Message:
        """A good message with a few bytes changed, cut off or doubled."""
        message = self._telemetry(fate=None)
        assert message.value is not None
        data = bytearray(message.value)
        for _ in range(self._random.choice((1, 1, 2, 5))):
            at = self._random.randrange(len(data)) if data else 0
            pick = self._random.randrange(4)
            if pick == 0 and data:
                data[at] = self._random.randrange(256)
            elif pick == 1:
                del data[at:]
            elif pick == 2:
                data[at:at] = self._random.randbytes(self._random.randrange(4))
            else:
                data[at:at] = self._random.choice(FRAGMENTS)
        # What it says now, if anything, is what its JSON says.
        return Message(bytes(data), message.key, None)

    def _garbage(self) -> Message:
        if self._random.random() < 0.3:
            return Message(None, b"tombstone", "dead")
        return Message(self._random.randbytes(self._random.choice((1, 100, 5000))), None, "dead")

    # -- parts --------------------------------------------------------------------------------

    def _telemetry(
        self,
        moment: datetime | None = None,
        *,
        fate: str | None,
        raw_metrics: str | None = None,
        **changes: Any,
    ) -> Message:
        moment = moment or self._moment()
        device = f"fuzz-{self._number}"
        fields = {"time": _iso(moment), "device_id": device, "metrics": {"cpu": self._float()}}
        data = self._document(**{**fields, **changes})
        if raw_metrics is not None:
            plain = json.dumps(fields["metrics"]).encode()
            data = data.replace(plain, raw_metrics.encode())
        return Message(data, device.encode(), fate, moment, str(changes.get("device_id", device)))

    def _document(self, **fields: Any) -> bytes:
        items = list(fields.items())
        self._random.shuffle(items)
        return json.dumps(dict(items), ensure_ascii=self._random.random() < 0.5).encode(
            errors="surrogatepass"
        )

    def _moment(self) -> datetime:
        hour = self._random.choice(self._hours)
        return hour + timedelta(microseconds=self._random.randrange(60_000_000))

    def _fate_at(self, moment: datetime) -> str | None:
        if abs(moment - (self._now - MAX_AGE)) < self._margin:
            return None
        if abs(moment - (self._now + MAX_FUTURE)) < self._margin:
            return None
        inside = self._now - MAX_AGE < moment < self._now + MAX_FUTURE
        return "stored" if inside else "dead"

    def _float(self) -> float:
        pick = self._random.randrange(4)
        if pick == 0:
            return self._random.choice(FLOATS)
        if pick == 1:
            return self._random.uniform(0, 100)
        if pick == 2:
            return self._random.gauss(0, 1) * 10 ** self._random.randrange(-300, 300)
        return float(self._random.randrange(-(2**53), 2**53))

    def _outside(self, message: Message) -> None:
        """Whatever is not the value: key, headers, timestamp, compression."""
        source = self._random
        message.compression = source.choice(COMPRESSIONS)
        if source.random() < 0.1:
            message.key = source.choice((None, b"", b"\0", source.randbytes(2000)))
        if source.random() < 0.2:
            for _ in range(source.choice((1, 3, 300))):
                name = source.choice(("", "topic", "reason", "truncated-from", "ü", "x" * 500))
                value = source.choice((None, b"", b"\xff\0", source.randbytes(200)))
                message.headers.append((name, value))
        if source.random() < 0.1:
            day = 24 * 3600 * 1000
            now = int(self._now.timestamp() * 1000)
            message.timestamp_ms = source.choice((0, 1, now - 400 * day, now, now + day // 48))


def _iso(moment: datetime) -> str:
    return moment.isoformat()


NO_TIMES: tuple[Any, ...] = (
    "", "now", "yesterday", "infinity", "-infinity", "NaN", None, 0, 1.5e9, True, [], {},
    "2026-13-01T00:00:00Z", "2026-02-30T00:00:00Z", "2026-03-01", "2026-03-01T00:00:00",
    "2026-03-01T24:00:00Z", "2026-03-01T00:00:60Z", "0000-01-01T00:00:00Z", "-0001-01-01T00:00:00Z",
    "10000-01-01T00:00:00Z", "294277-01-01T00:00:00Z", "9999-12-31T23:59:59-23:59",
    "0001-01-01T00:00:00+23:59", "2026-03-01T00:00:00+99:00", "2026-03-01T00:00:00.Z",
    "\N{ARABIC-INDIC DIGIT TWO}026-03-01T00:00:00Z", " 2026-03-01T00:00:00Z", "1e9",
)  # fmt: skip
SPELLINGS: tuple[Callable[[datetime], str], ...] = (
    lambda moment: moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
    lambda moment: moment.strftime("%Y-%m-%dt%H:%M:%S.%fz"),
    lambda moment: moment.strftime("%Y-%m-%d %H:%M:%S.%fZ"),
    lambda moment: moment.strftime("%Y-%m-%dT%H:%M:%S.%f000Z"),
    lambda moment: moment.strftime("%Y-%m-%dT%H:%M:%S.%f-00:00"),
    lambda moment: (moment + 14 * DAY / 24).strftime("%Y-%m-%dT%H:%M:%S.%f+14:00"),
    lambda moment: (moment - DAY / 2).strftime("%Y-%m-%dT%H:%M:%S.%f-12:00"),
    lambda moment: (moment + DAY / 24 / 60).strftime("%Y-%m-%dT%H:%M:%S.%f+0001"),
)
EXTREMES = (
    datetime.min.replace(tzinfo=UTC),
    datetime(1, 1, 1, 0, 0, 0, 1, tzinfo=UTC),
    datetime(1582, 10, 10, tzinfo=UTC),
    datetime(1899, 12, 31, tzinfo=UTC),
    datetime(1970, 1, 1, tzinfo=UTC),
    datetime(1999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
    datetime(2038, 1, 19, 3, 14, 8, tzinfo=UTC),
    datetime(2999, 1, 1, tzinfo=UTC),
    datetime.max.replace(tzinfo=UTC),
)
FLOATS = (
    0.0, -0.0, 5e-324, -5e-324, 2.2250738585072014e-308, 1.7976931348623157e308, 0.1, 1e22, 1e23,
    -1.7976931348623157e308, 1e100, 1.0000000000000002, 9007199254740993.0, 1e-7, 123456789.125,
)  # fmt: skip
# The text of a number, and what has to become of a message with it.
NUMBERS: tuple[tuple[str, str | None], ...] = (
    ("-0", "stored"), ("0e0", "stored"), ("1E+2", "stored"), ("1e-400", "stored"),
    ("9007199254740993", "stored"), ("18446744073709551616", "stored"), ("1" + "0" * 300, "stored"),
    ("0.1000000000000000055511151231257827021181583404541015625", "stored"),
    ("2.4703282292062327208e-324", None), ("1" * 400, "dead"), ("1e309", "dead"),
    ("-1e309", "dead"), ("1e99999999999", "dead"), ("NaN", "dead"), ("Infinity", "dead"),
    ("-Infinity", "dead"), ("true", "dead"), ("null", "dead"), ('"1"', "dead"), ("01", "dead"),
    ("+1", "dead"), (".5", "dead"), ("1.", "dead"), ("1_0", "dead"), ("0x10", "dead"),
    ("\N{ARABIC-INDIC DIGIT ONE}", "dead"), ("[1]", "dead"), ("1 2", "dead"), ("", "dead"),
)  # fmt: skip
METADATA: tuple[tuple[Any, str | None], ...] = (
    ("text", "stored"), ("", "stored"), ("\U0001f600\u202e\x7f\x01\r\n", "stored"), ("\0", "dead"),
    ("a\0b", "dead"), ("\ud800", "dead"), ("x\udfff", "dead"), ("\\u0000", "stored"),
    (True, "stored"), (None, "stored"), (2**63, "stored"), (10**40, "stored"), (10**4000, None),
    (-(10**40), "stored"), (1e308, "stored"), (5e-324, "stored"), (-0.0, "stored"),
    ([], "dead"), ({}, "dead"), ({"a": 1}, "dead"), ("y" * 50_000, "stored"),
    ("'); DROP TABLE memory; --", "stored"), ("\\x00", "stored"), ("NaN", "stored"),
)  # fmt: skip
FRAGMENTS = (
    b"\\u0000", b"\\ud800", b"\0", b'"', b"{", b"}", b"null", b"1e999", b"\xef\xbb\xbf", b"\xff",
    b"-", b"9" * 30, b"\\", b",", b":", b"\xc0\x80", b"\xed\xa0\x80",
)  # fmt: skip

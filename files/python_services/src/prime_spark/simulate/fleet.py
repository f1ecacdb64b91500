"""The messages of a fleet that does not exist, and messages that no ingest can store."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from prime_spark.events import MAX_EVENT_BYTES, Telemetry, encode

_DAY_SECONDS = 86_400.0
_FUTURE = datetime(2999, 1, 1, tzinfo=UTC)  # not by the clock: equal arguments, equal bytes


@dataclass(frozen=True, slots=True)
class Message:
    """A message to send: `rows` it becomes, or the `fault` for which it becomes none."""

    key: bytes
    value: bytes
    rows: int
    fault: str | None = None


class Device:
    """One device, with a load that follows the day, and disks that fill up.

    Everything about it comes from `seed` and `number`: the same fleet every time.
    """

    def __init__(self, number: int, seed: int) -> None:
        self.name = f"sim-{number:04d}"
        self._random = random.Random(f"{seed}/{number}")  # noqa: S311 (not a secret)
        self._phase = self._random.uniform(0, 2 * math.pi)
        self._base = self._random.uniform(5, 45)
        self._memory = self._random.uniform(20, 70)
        self._disk = self._random.uniform(10, 80)
        self._has_sensor = self._random.random() < 0.8

    def sample(self, time: datetime) -> Telemetry:
        """Return the next sample, as the collector would have taken it at `time`."""
        chance = self._random
        wave = math.sin(
            2 * math.pi * (time.timestamp() % _DAY_SECONDS) / _DAY_SECONDS + self._phase
        )
        cpu = _percent(self._base * (1.2 + wave) + chance.gauss(0, 4))
        self._memory = _percent(self._memory + chance.gauss(0, 0.3))
        self._disk = _percent(self._disk + chance.random() * 0.001)
        metrics = {
            "cpu_percent": cpu,
            "memory_percent": self._memory,
            "disk_percent": self._disk,
            "load_avg": round(cpu / 100 * 4, 2),
        }
        if self._has_sensor:
            metrics["temperature"] = round(38 + cpu * 0.35 + chance.gauss(0, 0.5), 1)
        return Telemetry(time=time, device_id=self.name, metrics=metrics)


def messages(
    *, devices: int, start: datetime, interval: float, seed: int, faults: float
) -> Iterator[Message]:
    """Yield the messages of `devices` without end: all devices in turn, then the next interval.

    `faults` is the share of messages (0..1) that are broken on purpose, in one of the ways of
    FAULTS. Equal arguments give equal bytes.
    """
    fleet = [Device(number, seed) for number in range(1, devices + 1)]
    chance = random.Random(f"{seed}/faults")  # noqa: S311
    kinds = list(FAULTS)
    tick = 0
    while True:
        time = start + timedelta(seconds=tick * interval)
        for device in fleet:
            sample = device.sample(time)
            value = encode(sample)
            if chance.random() < faults:
                kind = chance.choice(kinds)
                yield Message(device.name.encode(), FAULTS[kind](value, sample), 0, kind)
            else:
                yield Message(device.name.encode(), value, len(sample.metrics))
        tick += 1


def _percent(value: float) -> float:
    return round(min(100.0, max(0.0, value)), 3)


def _with_device(value: bytes, sample: Telemetry, name: bytes) -> bytes:
    return value.replace(sample.device_id.encode(), name, 1)


def _in_the_future(sample: Telemetry) -> bytes:
    return encode(Telemetry(time=_FUTURE, device_id=sample.device_id, metrics=sample.metrics))


def _oversized(value: bytes) -> bytes:
    return value[:-1] + b',"metadata":{"note":"' + b"x" * MAX_EVENT_BYTES + b'"}}'


FAULTS: dict[str, Callable[[bytes, Telemetry], bytes]] = {
    "truncated": lambda value, _: value[: len(value) // 2],
    "wrong-type": lambda value, _: value.replace(b'"cpu_percent":', b'"cpu_percent":"a lot","x":'),
    "nan": lambda value, _: value.replace(b'"cpu_percent":', b'"cpu_percent":NaN,"x":'),
    "nul-byte": lambda value, sample: _with_device(value, sample, b"sim-\\u0000"),
    "oversized": lambda value, _: _oversized(value),
    "future": lambda _, sample: _in_the_future(sample),
}

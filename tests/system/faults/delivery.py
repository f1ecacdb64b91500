"""Every sample stored once: what the collectors took, by their own record, against the database."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any, NamedTuple

from tests.system.fleet import fleet
from tests.system.fleet.condition import buffered, unhealthy
from tests.system.fleet.fleet import connect, members, probe, query, service_python, setting

DEVICES = members("telemetry")
INTERVAL = float(setting(DEVICES[0], "telemetry", "telemetry_interval_seconds"))
TOPIC = str(setting(DEVICES[0], "telemetry", "telemetry_topic"))
DEAD_LETTERS = "prime-spark.dlq"
BUFFER = "/var/lib/private/prime-spark-telemetry/buffer"
METRICS = {"cpu_percent", "memory_percent", "disk_percent", "load_avg"}

Sample = tuple[str, datetime]


class Mark(NamedTuple):
    """Of one device: the samples numbered below `number` were taken before `at`, epoch seconds."""

    number: int
    at: float


class Figure(NamedTuple):
    """How long it took until everything was well again, for the report."""

    fault: str
    samples: int
    stored: float
    healthy: float


FIGURES: list[Figure] = []


def mark(device: str) -> Mark:
    """Where a device's collector stands now."""
    seen = probe(connect(device), "samples_taken", BUFFER, str(INTERVAL))
    return Mark(int(seen["number"]), float(seen["at"]))


def marks() -> dict[str, Mark]:
    """Where every collector stands now."""
    with ThreadPoolExecutor(len(DEVICES)) as pool:
        return dict(zip(DEVICES, pool.map(mark, DEVICES), strict=True))


def messages(topic: str, moment: str) -> dict[str, Any]:
    """Messages of a topic since a moment, and its end."""
    host = connect(members("kafka")[0])
    return dict(probe(host, "messages", topic, moment, python=service_python("kafka-admin")))


def rows_between(begin: dict[str, Mark], end: dict[str, Mark]) -> dict[Sample, dict[str, float]]:
    """What the database has of the time between two marks: metrics by device and time."""
    spans = " OR ".join(
        f"(device_id = '{device}' AND time >= to_timestamp({begin[device].at})"
        f" AND time < to_timestamp({end[device].at}))"
        for device in begin
    )
    found: dict[Sample, dict[str, float]] = {}
    for row in query(
        f"SELECT device_id, time, metric_name, value FROM device_metrics WHERE {spans}"
    ):
        sample = found.setdefault((row["device_id"], datetime.fromisoformat(row["time"])), {})
        assert row["metric_name"] not in sample, f"stored twice: {row}"
        sample[row["metric_name"]] = row["value"]
    return found


class Delivery:
    """Watches the samples of all devices from its making on; `confirm` says whether all arrived."""

    def __init__(self) -> None:
        self._begin = marks()
        self._letters = messages(DEAD_LETTERS, "end")["end"]

    def confirm(self, fault: str, seconds: float, *, silent: Collection[str] = ()) -> None:
        """Every sample taken since the beginning is stored once, as it was; fails otherwise.

        Call it when the fault has ended. All has to be stored and every service healthy after
        `seconds`. Collectors of the devices in `silent` did not run all the time: of theirs none
        is lost, but some were never taken.
        """
        started = time.monotonic()
        # Two of each, so that one at least was taken after the fault began.
        end = fleet.wait_until(
            f"after {fault}: two samples of every collector, by its own record",
            marks,
            seconds,
            lambda seen: all(seen[d].number >= self._begin[d].number + 2 for d in DEVICES),
        )
        taken = {device: end[device].number - self._begin[device].number for device in DEVICES}

        def stored() -> dict[str, int]:
            count = Counter(device for device, _ in rows_between(self._begin, end))
            return {device: count[device] for device in DEVICES}

        fleet.wait_until(
            f"after {fault}: the samples taken, {taken}, in the database",
            stored,
            seconds - (time.monotonic() - started),
            lambda found: found == taken,
        )
        after_fault = time.monotonic() - started
        fleet.wait_until(
            f"after {fault}: every service at 200",
            unhealthy,
            seconds,
            lambda wrong: not wrong,
        )
        healthy = time.monotonic() - started
        fleet.wait_until(
            "empty buffers", buffered, 30, lambda seen: set(seen.values()) == {0.0}, interval=0.2
        )
        self._compare(rows_between(self._begin, end), end, silent)
        letters = messages(DEAD_LETTERS, "end")["end"] - self._letters
        assert letters == 0, f"{letters} dead letters after {fault}"
        FIGURES.append(Figure(fault, sum(taken.values()), after_fault, healthy))

    def _compare(
        self,
        stored: dict[Sample, dict[str, float]],
        end: dict[str, Mark],
        silent: Collection[str],
    ) -> None:
        """What is stored is what Kafka has, and its times are regular."""
        sent: dict[Sample, dict[str, float]] = {}
        for text in messages(TOPIC, str(min(m.at for m in self._begin.values())))["messages"]:
            message = json.loads(text)
            device, moment = message["device_id"], datetime.fromisoformat(message["time"])
            if (
                device in DEVICES
                and self._begin[device].at <= moment.timestamp() < end[device].at
                # One that arrived twice has to be the same.
                and sent.setdefault((device, moment), message["metrics"]) != message["metrics"]
            ):
                raise AssertionError(f"sent twice, and not the same: {message}")
        differing = [key for key in stored.keys() | sent.keys() if stored.get(key) != sent.get(key)]
        assert not differing, f"not stored as Kafka has them: {sorted(differing)}"
        for sample, metrics in stored.items():
            assert set(metrics) - {"temperature"} == METRICS, f"{sample}: {metrics}"
        for device in set(DEVICES) - set(silent):
            ticks = sorted(
                round(at.timestamp() / INTERVAL) for name, at in stored if name == device
            )
            assert ticks == list(range(ticks[0], ticks[-1] + 1)), f"gaps of {device}: {ticks}"

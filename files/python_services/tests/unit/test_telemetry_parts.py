from __future__ import annotations

from typing import Any

import psutil
import pytest

from prime_spark.events import decode, encode
from prime_spark.telemetry.clock import Clock
from prime_spark.telemetry.collector import Collector, cpu_temperature, seconds_to_next_tick


def test_sample_of_this_host() -> None:
    sample = Collector("host-1", "/", Clock()).sample()
    assert sample is not None
    assert {"cpu_percent", "memory_percent", "disk_percent", "load_avg"} <= set(sample.metrics)
    for name in ("cpu_percent", "memory_percent", "disk_percent"):
        assert 0 <= sample.metrics[name] <= 100
    assert decode(encode(sample), type(sample)) == sample


def test_failing_probe_costs_its_own_metric(monkeypatch: pytest.MonkeyPatch) -> None:
    collector = Collector("host-1", "/does/not/exist", Clock())
    sample = collector.sample()
    assert sample is not None
    assert "disk_percent" not in sample.metrics
    assert "cpu_percent" in sample.metrics

    def broken(*_arguments: object, **_options: object) -> Any:
        raise OSError("gone")

    for name in ("cpu_percent", "virtual_memory", "sensors_temperatures"):
        monkeypatch.setattr(psutil, name, broken, raising=False)
    monkeypatch.setattr("os.getloadavg", broken)
    assert collector.sample() is None


class Reading:
    def __init__(self, current: float | None) -> None:
        self.current = current


@pytest.mark.parametrize(
    ("sensors", "expected"),
    [
        ({}, None),
        ({"nvme": []}, None),
        ({"nvme": [Reading(60.0)], "cpu_thermal": [Reading(45.5)]}, 45.5),
        ({"coretemp": [Reading(40.0), Reading(52.0), Reading(None)]}, 52.0),
        ({"odd": [Reading(33.0)]}, 33.0),
    ],
)
def test_temperature(
    monkeypatch: pytest.MonkeyPatch, sensors: dict[str, list[Reading]], expected: float | None
) -> None:
    monkeypatch.setattr(psutil, "sensors_temperatures", lambda: sensors, raising=False)
    assert cpu_temperature() == expected


def test_no_sensors_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(psutil, "sensors_temperatures", raising=False)
    assert cpu_temperature() is None


def test_ticks_are_multiples_of_the_interval() -> None:
    assert seconds_to_next_tick(100.0, 30) == 20
    assert seconds_to_next_tick(120.0, 30) == 30
    assert seconds_to_next_tick(149.5, 30) == pytest.approx(0.5)

"""Samples of the host, read with psutil."""

from __future__ import annotations

import os
from collections.abc import Callable

import psutil
import structlog

from prime_spark.events import Telemetry
from prime_spark.telemetry.clock import Clock

_log = structlog.get_logger(__name__)

# The sensor nearest to the processor, by driver: Raspberry Pi, Intel, AMD, ACPI.
_CPU_SENSORS = ("cpu_thermal", "cpu-thermal", "coretemp", "k10temp", "acpitz")


class Collector:
    """Takes samples of this host; a probe that fails costs its own metric only.

    Metrics: cpu_percent (since the previous sample, all cores, 0..100), memory_percent (in use,
    0..100), disk_percent (of the file system at `disk_path`, 0..100), temperature (degrees
    Celsius, absent where the host has no sensor), load_avg (over one minute).
    """

    def __init__(self, device_id: str, disk_path: str, clock: Clock) -> None:
        self._device_id = device_id
        self._clock = clock
        self._probes: dict[str, Callable[[], float | None]] = {
            # Never blocks: it compares with the previous call.
            "cpu_percent": lambda: psutil.cpu_percent(interval=None),
            "memory_percent": lambda: psutil.virtual_memory().percent,
            "disk_percent": lambda: psutil.disk_usage(disk_path).percent,
            "temperature": cpu_temperature,
            "load_avg": lambda: os.getloadavg()[0],
        }
        self._failing: set[str] = set()
        psutil.cpu_percent(interval=None)  # the first call has nothing to compare with

    def sample(self) -> Telemetry | None:
        """Return a sample taken now, or None when no probe gave a value."""
        moment = self._clock.now()
        metrics: dict[str, float] = {}
        for name, probe in self._probes.items():
            value = self._read(name, probe)
            if value is not None:
                metrics[name] = float(value)
        if not metrics:
            return None
        return Telemetry(time=moment, device_id=self._device_id, metrics=metrics)

    def _read(self, name: str, probe: Callable[[], float | None]) -> float | None:
        try:
            value = probe()
        except (OSError, ValueError, RuntimeError, psutil.Error) as error:
            if name not in self._failing:  # once, not every interval
                self._failing.add(name)
                _log.warning("probe failed", metric=name, error=str(error))
            return None
        self._failing.discard(name)
        return value


def cpu_temperature() -> float | None:
    """Return the processor's temperature in degrees Celsius, or None without a sensor."""
    read = getattr(psutil, "sensors_temperatures", None)
    sensors = read() if read else {}
    for name in (*_CPU_SENSORS, *sensors):
        readings = [entry.current for entry in sensors.get(name, []) if entry.current is not None]
        if readings:
            return float(max(readings))
    return None


def seconds_to_next_tick(now: float, interval: float) -> float:
    """Return how long to wait from `now` (epoch seconds) to the next multiple of `interval`."""
    return interval - now % interval

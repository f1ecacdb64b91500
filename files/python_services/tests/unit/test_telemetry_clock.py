"""The collector while the clock is set, with a shifted clock: the machine's own stays as it is."""

from __future__ import annotations

import asyncio
import itertools
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from prime_spark.config import HttpConfig, KafkaConfig
from prime_spark.events import Telemetry, decode
from prime_spark.runtime.notify import Notifier
from prime_spark.runtime.service import Service
from prime_spark.telemetry.buffer import DiskBuffer
from prime_spark.telemetry.clock import Clock
from prime_spark.telemetry.service import TelemetryService
from prime_spark.telemetry.settings import BufferConfig, TelemetryConfig

INTERVAL = 0.1


@dataclass
class Shifted:
    """The machine's wall clock, as it would be had somebody set it."""

    shift: float = 0.0

    def wall(self) -> float:
        return time.time() + self.shift


@pytest.mark.parametrize("step", [7200.0, -7200.0, 12.34, 0.0])
def test_step(step: float) -> None:
    shifted = Shifted()
    clock = Clock(shifted.wall)
    assert clock.step() == 0.0
    shifted.shift = step
    assert clock.step() == pytest.approx(step, abs=0.5)
    assert clock.step() == 0.0, "told once"


@pytest.mark.parametrize("step", [86_400.0 * 365 + 0.05, -86_400.0 * 365 - 0.05, -3.25, 3.25])
def test_sampling_goes_on_at_its_pace(step: float, tmp_path: Path) -> None:
    shifted = Shifted()
    registry = CollectorRegistry()
    buffer = DiskBuffer(tmp_path / "buffer", 1024 * 1024)
    config = TelemetryConfig(
        device_id="host-1",
        interval_seconds=INTERVAL,
        kafka=KafkaConfig(bootstrap_servers=["none:1"], username="u", credential="c"),
        buffer=BufferConfig(path=str(tmp_path / "buffer")),
        http=HttpConfig(host="127.0.0.1", port=1),
    )

    async def go() -> float:
        service = Service(Notifier(), stall_seconds=60)
        telemetry = TelemetryService(config, buffer, Clock(shifted.wall), registry)
        sampling = asyncio.create_task(telemetry._sample(service, asyncio.Event()))
        started = time.monotonic()
        for shift in (0.0, step):
            shifted.shift = shift
            taken = buffer.stats().records
            async with asyncio.timeout(10):
                while buffer.stats().records < taken + 6:
                    await asyncio.sleep(0.005)
        service.stop.set()
        await sampling
        return time.monotonic() - started

    seconds = asyncio.run(go())
    times = [
        decode(record.payload, Telemetry).time.timestamp() for record in buffer.peek(1000, 10**6)
    ]
    buffer.close()
    # Neither a pause as long as the step nor a burst to make up for it.
    assert len(times) <= seconds / INTERVAL + 2
    gaps = [after - before for before, after in itertools.pairwise(times)]
    (jump,) = [gap for gap in gaps if abs(gap - step) < 0.5]
    assert all(0 < gap < 1 for gap in gaps if gap is not jump)
    # Back on the multiples of the interval after the step, where no busy machine held one up.
    assert min(moment % INTERVAL for moment in times[-5:]) < 0.03
    assert registry.get_sample_value("prime_spark_telemetry_clock_steps_total") == 1

"""Every host comes back by itself: VPN, mounts, containers, units, and new telemetry."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from tests.system.fleet import fleet
from tests.system.fleet.condition import boot_id, state
from tests.system.fleet.fleet import members, query, setting

pytestmark = pytest.mark.reboot

DEVICES = members("telemetry")


def newest() -> dict[str, datetime]:
    rows = query(
        "SELECT device_id, max(time) AS time FROM device_metrics"
        " WHERE time > now() - interval '1 hour' GROUP BY 1"
    )
    return {row["device_id"]: datetime.fromisoformat(row["time"]) for row in rows}


def after(moment: datetime) -> Callable[[dict[str, datetime]], bool]:
    return lambda rows: all(rows.get(device, moment) > moment for device in DEVICES)


@pytest.mark.parametrize("name", members("all"))
def test_a_host_comes_back_as_it_was(name: str) -> None:
    before = boot_id(name)
    started = datetime.now(UTC)
    fleet.lab("reboot", name)
    fleet.disconnect(name)
    fleet.wait_until(
        f"another boot of {name}", lambda: boot_id(name), 60, lambda seen: seen != before
    )
    fleet.wait_until(f"all well on {name}", lambda: state(name), 90, lambda wrong: not wrong)
    # Not only of the host itself: with it Kafka, the VPN's hub or the database may have been away.
    fleet.wait_until("new rows of every device", newest, 60, after(datetime.now(UTC)))
    gaps = largest_gaps(started)
    assert {device: gap for device, gap in gaps.items() if gap > allowed_gap(device, name)} == {}


def test_a_dead_nas_holds_up_no_boot() -> None:
    (server,), name = members("nas_server"), members("nas")[-1]
    fleet.lab("cut", server)
    try:
        fleet.lab("reboot", name)
        fleet.disconnect(name)
        fleet.wait_until(
            f"all but the share well on {name}",
            lambda: state(name, share=False),
            60,
            lambda wrong: not wrong,
        )
    finally:
        fleet.lab("heal", server)
    fleet.wait_until(f"all well on {name}", lambda: state(name), 60, lambda wrong: not wrong)


def largest_gaps(since: datetime) -> dict[str, float]:
    """By device: the longest time without a sample since then, in seconds."""
    rows = query(
        "SELECT device_id, max(extract(epoch FROM gap)) AS gap FROM ("
        " SELECT device_id, time - lag(time) OVER (PARTITION BY device_id ORDER BY time) AS gap"
        f" FROM device_metrics WHERE metric_name = 'cpu_percent' AND time > '{since.isoformat()}'"
        ") gaps GROUP BY 1"
    )
    return {row["device_id"]: row["gap"] or 0.0 for row in rows if row["device_id"] in DEVICES}


def allowed_gap(device: str, rebooted: str) -> float:
    """Nobody but the rebooted host itself misses a sample."""
    interval = float(setting(device, "telemetry", "telemetry_interval_seconds"))
    return 60.0 if device == rebooted else 1.9 * interval

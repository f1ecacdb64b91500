"""Every host comes back by itself: VPN, mounts, containers, units, and new telemetry."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.fleet import fleet
from tests.fleet.fleet import connect, members, query, setting, shell, vpn_address

pytestmark = pytest.mark.reboot

DEVICES = members("telemetry")
# By group: the units that have to be active. What listens is up before what it serves is there.
UNITS = {
    "managed": ["prime-spark-sysctl.service"],
    "wireguard": [
        "wg-quick@wg0.service",
        "prime-spark-vpn-guard.service",
        "prime-spark-vpn-status.timer",
    ],
    "nas": ["mnt-nas.automount"],
    "nas_server": ["ssh.service"],
    "docker": ["docker.service"],
    "telemetry": ["prime-spark-telemetry.service"],
    "ingest": ["prime-spark-ingest.service"],
    "api": ["prime-spark-api.service"],
    "spark_agent": ["prime-spark-agent.service"],
}
PROJECTS = ("kafka", "redis", "timescale")


def groups_of(name: str) -> set[str]:
    return {group for group in {*UNITS, *PROJECTS} if name in members(group)}


def boot_id(name: str) -> str:
    return shell(connect(name), "cat /proc/sys/kernel/random/boot_id")


def state(name: str, *, share: bool = True) -> dict[str, Any]:
    """What of a host is not as it should be; nothing when it is well."""
    groups, host = groups_of(name), connect(name)
    units = [unit for group in sorted(groups & set(UNITS)) for unit in UNITS[group]]
    wrong: dict[str, Any] = {}
    states = shell(host, 'systemctl is-active "$@" || true', *units).splitlines()
    wrong["units"] = [(u, s) for u, s in zip(units, states, strict=True) if s != "active"]
    wrong["failed"] = shell(host, "systemctl --failed --plain --no-legend").splitlines()
    if projects := sorted(groups & set(PROJECTS)):
        script = "docker ps --all --format '{{.Label \"com.docker.compose.project\"}} {{.Status}}'"
        found = [line.split(" ", 1) for line in shell(host, script).splitlines()]
        well = {p for p, status in found if status.startswith("Up") and "(healthy)" in status}
        wrong["containers"] = [found] if well != set(projects) else []
    if share and "nas" in groups:
        script = "timeout 20 ls -A /mnt/nas && findmnt --noheadings --output FSTYPE /mnt/nas"
        wrong["mount"] = [] if ".prime-spark-nas" in shell(host, script) else ["no share"]
    if "wireguard" in groups:
        others = [vpn_address(n) for n in members("wireguard") if n != name]
        script = 'for a; do ping -q -c 1 -W 2 "$a" >/dev/null || echo "$a"; done'
        wrong["vpn"] = shell(host, script, *others).splitlines()
    return {what: seen for what, seen in wrong.items() if seen}


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

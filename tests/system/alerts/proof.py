"""One fault on the lab, from its cause to the alert that is resolved."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from tests.system.alerts.faults import Fault, alarm, caused, first, run
from tests.system.fleet import fleet
from tests.system.fleet.condition import wait_all_well
from tests.system.fleet.fleet import BIN, PROBES, ROOT, connect, shell, vpn_address

HERE = Path(__file__).parent
RECEIVER = "alert-test-receiver"
NOTES = "/run/alert-test.jsonl"
WELL_SECONDS = 180.0


def listed() -> dict[str, str]:
    """The committed list: alert to fault, of those the lab proves."""
    rows = yaml.safe_load((HERE / "faults.yml").read_text())
    return {alert: row for alert, row in rows.items() if isinstance(row, str)}


def monitoring(*arguments: str) -> None:
    """Run the role."""
    done = subprocess.run(
        [BIN / "ansible-playbook", "site.yml", "--tags", "monitoring", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]


def listen() -> None:
    """Start the receiver on the dead-man receiver's host."""
    name = first("deadman")
    script = (
        f"rm -f {NOTES}; systemctl stop {RECEIVER} 2>/dev/null;"
        f' systemd-run --quiet --unit={RECEIVER} python3 -c "$1" "$2" {NOTES}'
    )
    source = (PROBES / "alert_receiver.py").read_text()
    shell(connect(name), script, source, f"{vpn_address(name)}:9299")


def heard(fault: Fault, status: str, since: float) -> bool:
    """Whether the receiver was told that the fault's alert is firing or resolved."""
    if fault.at != "receiver":
        return alarm() == (status == "firing")
    text = run(first("deadman"), f"cat {NOTES} 2>/dev/null || true")
    for line in text.splitlines():
        note: dict[str, Any] = json.loads(line)
        wanted = {"alertname": fault.alert, "status": status, **fault.labels}
        if note["at"] >= since and all(note.get(key) == value for key, value in wanted.items()):
            return True
    return False


def waited(
    what: str, look: Callable[[], bool], seconds: float, during: Callable[[], object]
) -> float:
    """Seconds until `look` is true."""
    started = time.monotonic()

    def again() -> bool:
        during()
        return look()

    fleet.wait_until(what, again, seconds, interval=1)
    return time.monotonic() - started


@contextmanager
def prepared() -> Iterator[None]:
    """The receiver listens, the role has the durations of lab.yml; afterwards as it was."""
    try:
        wait_all_well(WELL_SECONDS)  # after a boot
        listen()
        monitoring("-e", f"@{HERE / 'lab.yml'}")
        yield
    finally:
        monitoring()
        run(first("deadman"), f"systemctl stop {RECEIVER}; rm -f {NOTES}")


def prove(fault: Fault) -> tuple[float, float]:
    """Cause a fault: seconds until its alert fires, and from the repair until it is resolved."""
    since = time.time()
    try:
        with caused(fault):
            fired = waited(
                f"{fault.alert} fires",
                lambda: heard(fault, "firing", since),
                fault.fires,
                fault.during,
            )
        repaired = time.time()
        resolved = waited(
            f"{fault.alert} is resolved",
            lambda: heard(fault, "resolved", repaired),
            fault.resolves,
            lambda: None,
        )
    finally:
        fault.tidy()
    return fired, resolved

"""Causes every fault on the lab and waits for its alert: python -m tests.alerts [FAULT ...]

Prints the seconds until the alert arrives at its receiver, and until it is resolved after the
repair. The role `monitoring` is run with the short durations of lab.yml first, and as it was
afterwards.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from tests.alerts.faults import Fault, alarm, caused, faults, first, run
from tests.fleet import fleet
from tests.fleet.fleet import BIN, PROBES, ROOT, connect, members, shell, vpn_address

HERE = Path(__file__).parent
RECEIVER = "alert-test-receiver"
NOTES = "/run/alert-test.jsonl"


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


def prove(name: str, fault: Fault) -> bool:
    """Cause one fault; print its line."""
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
    except (AssertionError, subprocess.SubprocessError) as error:
        print(f"{name:<20} {fault.alert:<22} FAILED: {str(error)[:300]}", flush=True)
        return False
    print(f"{name:<20} {fault.alert:<22} {fired:>6.0f} s {resolved:>6.0f} s", flush=True)
    return True


def main() -> int:
    """Print the table; 1 unless every alert fired and was resolved."""
    known = faults()
    wanted = sys.argv[1:] or list(known)
    if unknown := set(wanted) - set(known):
        print(f"no such fault: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
        return 2
    if {fault.alert: name for name, fault in known.items()} != listed():
        print("tests/alerts/faults.yml is not what tests/alerts/faults.py causes", file=sys.stderr)
        return 1
    try:
        listen()
        monitoring("-e", f"@{HERE / 'lab.yml'}")
        print(f"{'fault':<20} {'alert':<22} {'fires':>8} {'resolved':>8}")
        well = sum([prove(name, known[name]) for name in wanted])
    finally:
        monitoring()
        run(first("deadman"), f"systemctl stop {RECEIVER}; rm -f {NOTES}")
        for name in members("all"):
            fleet.disconnect(name)
        shutil.rmtree(fleet.SOCKETS, ignore_errors=True)
    print(f"alerts fired and resolved: {well} of {len(wanted)}")
    return 0 if well == len(wanted) else 1


if __name__ == "__main__":
    sys.exit(main())

"""Causes every fault on the lab and waits for its alert: python -m tests.system.alerts [FAULT ...]

Prints the seconds until the alert arrives at its receiver, and until it is resolved after the
repair. The role `monitoring` is run with the short durations of lab.yml first, and as it was
afterwards.
"""

from __future__ import annotations

import subprocess
import sys

from tests.system.alerts.faults import Fault, faults
from tests.system.alerts.proof import listed, prepared, prove
from tests.system.fleet import fleet


def line(name: str, fault: Fault) -> bool:
    """Prove one fault; print its line."""
    try:
        fired, resolved = prove(fault)
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
        print(
            "tests/system/alerts/faults.yml is not what tests/system/alerts/faults.py causes",
            file=sys.stderr,
        )
        return 1
    try:
        with prepared():
            print(f"{'fault':<20} {'alert':<22} {'fires':>8} {'resolved':>8}")
            well = sum([line(name, known[name]) for name in wanted])
    finally:
        fleet.disconnect_all()
    print(f"alerts fired and resolved: {well} of {len(wanted)}")
    return 0 if well == len(wanted) else 1


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""Say of every role of every host whether it still is what the last run brought up.

Looks at the hosts and changes nothing. States: in sync; drifted, with what differs; outdated (the
inventory or the repository changed since); unknown (no run has recorded the role there yet);
refused (the host cannot be provisioned); unreachable.

Exit status: 0 when everything is in sync, 2 when something is not, 4 when that is only because
hosts are unreachable, 1 when it could not be told.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
PLAYBOOK = Path(sys.executable).with_name("ansible-playbook")


def look(inventory: str, limit: str | None, file: Path) -> tuple[int, str]:
    """Run the playbook; its exit status and what it printed. ``file`` gets the report."""
    command = [str(PLAYBOOK), "--inventory", inventory, "playbooks/drift.yml"]
    command += ["--limit", limit] if limit else []
    command += ["--extra-vars", json.dumps({"drift_file": str(file)})]
    environment = {**os.environ, "ANSIBLE_NOCOLOR": "1"}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    return done.returncode, f"{done.stdout}{done.stderr}"


def table(report: dict) -> str:  # type: ignore[type-arg]
    """Host, role, state and what differs; of a host that is in sync one line."""
    rows = [("HOST", "ROLE", "STATE")]
    for host, entry in report["hosts"].items():
        roles = entry["roles"]
        others = {n: role for n, role in roles.items() if role["state"] != "in sync" or role["why"]}
        for name, role in others.items():
            rows.append((host, name, f"{role['state']}: {'; '.join(role['why'])}"))
        if not others:
            rows.append((host, f"all {len(roles)}" if roles else "-", entry["state"]))
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return "\n".join(f"{h:<{widths[0]}}  {r:<{widths[1]}}  {state}" for h, r, state in rows)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inventory", "-i", default="inventories/lab")
    parser.add_argument("--limit", "-l", help="hosts to look at, a pattern of Ansible")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="prime-spark-drift-") as directory:
        file = Path(directory) / "drift.json"
        status, output = look(options.inventory, options.limit, file)
        if file.exists():
            report = json.loads(file.read_text())
        elif away := re.findall(r"^(\S+) is unreachable \(", output, re.MULTILINE):
            # Nobody is left to play on.
            hosts = {host: {"state": "unreachable", "roles": {}} for host in away}
            report = {"hosts": hosts, "summary": {"unreachable": len(away)}}
        else:
            print(output.strip(), file=sys.stderr)
            return 1
    print(json.dumps(report, indent=1) if options.json else table(report))
    states = set(report["summary"])
    if status not in (0, 4) and "refused" not in states:
        return 1
    return 2 if states - {"in sync", "unreachable"} else 4 if "unreachable" in states else 0


if __name__ == "__main__":
    sys.exit(main())

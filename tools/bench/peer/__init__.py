"""The same state expressed with pyinfra, made from what the hosts record, and its runs."""

from __future__ import annotations

import base64
import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tools.bench.state import Fleet, State

PYINFRA = Path(sys.executable).parent.parent / "bench/bin/pyinfra"
HERE = Path(__file__).resolve().parent


class PeerError(Exception):
    """pyinfra did not do what it was asked to; the message quotes it."""


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of pyinfra: wall-clock seconds, and each operation that changed something."""

    seconds: float
    changed: list[str]


def write(folder: Path, fleet: Fleet, states: dict[str, State]) -> None:
    """Lay down what ``inventory.py`` reads: ``fleet.json`` and the contents of files by host.

    The contents are secrets, too: ``folder`` has to be private and go when the bench ends.
    """
    hosts = {name: _wanted(state, folder / name) for name, state in states.items()}
    given = {"ssh_config": str(fleet.ssh_config), "hosts": hosts}
    (folder / "fleet.json").write_text(json.dumps(given))


def _wanted(state: State, contents: Path) -> State:
    wanted = dict(state)
    wanted["files"] = {}
    for path, file in state["files"].items():
        copy = contents / path.lstrip("/")
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(base64.b64decode(file["content"]))
        wanted["files"][path] = _owned(file)
    wanted["directories"] = {path: _owned(entry) for path, entry in state["directories"].items()}
    wanted["projects"] = {
        name: {
            **project,
            "containers": {
                key.partition("/")[2]: container
                for key, container in state["containers"].items()
                if key.startswith(f"{name}/")
            },
        }
        for name, project in state["projects"].items()
    }
    return wanted


def _owned(entry: dict[str, Any]) -> dict[str, Any]:
    # pyinfra compares owners by name; one that only a container knows has none on the host.
    return {key: entry[key] for key in ("user", "group", "mode") if entry[key] is not None}


def deploy(folder: Path) -> Run:
    """Run the deployment on all hosts; raises PeerError when an operation fails."""
    # Without a plan beforehand (--yes) and without waiting for each other (--no-wait): the fastest.
    argv = [str(PYINFRA), "--yes", "--no-wait", "--json"]
    argv += [str(HERE / "inventory.py"), str(HERE / "deploy.py")]
    started = time.monotonic()
    done = subprocess.run(
        argv,
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PRIME_SPARK_BENCH_STATE": str(folder), "PYTHONDONTWRITEBYTECODE": "1"},
    )
    seconds = time.monotonic() - started
    try:
        results = json.loads(done.stdout)["results"]
    except (ValueError, KeyError):
        raise PeerError(f"pyinfra ended with {done.returncode}: {done.stderr[-4000:]}") from None
    failed = [entry["name"] for entry in results["operations"] if entry["error"]]
    if done.returncode != 0 or failed or results["failed_hosts"]:
        raise PeerError(f"pyinfra failed at {failed[:5]}: {done.stderr[-4000:]}")
    changed = [
        f"{host} {entry['name']}" for entry in results["operations"] for host in entry["success"]
    ]
    return Run(seconds, changed)

"""A hostile neighbour at every HTTP port of ours: memory stays bounded, good requests go on."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hostile
import psutil
import pytest

from api_support import Servers, api_config, credentials, nowhere, wait_for
from prime_spark.runtime.http_protocol import HEAD_SECONDS
from support import Command, Daemon, free_port, inherited, running

MIB = 1024 * 1024
TOKEN = "token-of-the-tests-32-characters-long"
# What a flood of a second sends is a hundred times as much.
MEMORY = 96 * MIB
# Of a good request, with the attack and somebody else's work on the same two cores. How long one
# usually takes is for the benchmarks to say.
PATIENCE = 30.0


def _kafka(name: str) -> dict[str, Any]:
    return {"bootstrap_servers": ["127.0.0.1:9"], "username": name, "credential": "kafka_password"}


def _api(folder: Path) -> dict[str, Any]:
    config = api_config(Servers(), folder / "share")
    del config["documentation"]
    return config


def _agent(folder: Path) -> dict[str, Any]:
    return {
        "name": "agent-1",
        "callers": {"dispatcher": {"credential": "token"}},
        "state": str(folder / "tasks.sqlite"),
        "nas": {"directory": str(folder / "nas")},
    }


def _telemetry(folder: Path) -> dict[str, Any]:
    buffer = {"path": str(folder / "buffer")}
    kafka = _kafka("telemetry")
    return {"device_id": "host-1", "interval_seconds": 30, "kafka": kafka, "buffer": buffer}


def _ingest(_folder: Path) -> dict[str, Any]:
    database = {**nowhere(), "name": "nowhere", "credential": "database_password"}
    return {"kafka": _kafka("ingest"), "group_id": "ingest", "database": database}


def _dispatcher(_folder: Path) -> dict[str, Any]:
    return {"redis": nowhere(), "agents": [], "credential": "token"}


def _kafka_exporter(_folder: Path) -> dict[str, Any]:
    return {"kafka": _kafka("exporter")}


def _deadman(folder: Path) -> dict[str, Any]:
    return {"credential": "token", "state_path": str(folder / "state.json")}


def _hook(folder: Path) -> dict[str, Any]:
    source = {"name": "alerts", "kind": "alertmanager", "secrets": ["token"]}
    (folder / "rules.yml").write_text(
        json.dumps({"sources": [source], "playbooks": ["site.yml"], "rules": []})
    )
    ansible = {"checkout": str(folder), "inventory": "hosts", "programs": "/usr/bin"}
    return {"rules": str(folder / "rules.yml"), "state": str(folder / "state"), "ansible": ansible}


SERVICES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "api": _api,
    "agent": _agent,
    "telemetry": _telemetry,
    "ingest": _ingest,
    "dispatcher": _dispatcher,
    "kafka-exporter": _kafka_exporter,
    "deadman": _deadman,
    "hook": _hook,
}


def command(name: str, folder: Path) -> Command:
    config = SERVICES[name](folder)
    config.setdefault("http", {"host": "127.0.0.1", "port": free_port()})
    return Command(name, folder, config, {**credentials(Servers()), "token": TOKEN})


def peak(pid: int) -> int:
    """Return the most memory that a process ever had, in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError


def good_requests(daemon: Daemon, attack: subprocess.Popen[str]) -> list[float]:
    """Ask for as long as the attack lasts; return the seconds that each answer took.

    On a busy machine a request may come so slowly that its connection is one of those that the
    server ends: its sender tries again, as a client does.
    """
    took = []
    while attack.poll() is None:
        started = time.monotonic()
        while not daemon.health():
            assert time.monotonic() - started < PATIENCE, "no answer"
        took.append(time.monotonic() - started)
        time.sleep(0.02)
    return took


def attacked(daemon: Daemon, seconds: float, *kinds: str) -> tuple[dict[str, Any], list[float]]:
    """Have the port attacked; return what came of it, and what good requests took meanwhile."""
    arguments = [sys.executable, hostile.__file__, str(daemon.port), str(seconds), *kinds]
    attack = subprocess.Popen(arguments, env=inherited(), stdout=subprocess.PIPE, text=True)
    try:
        took = good_requests(daemon, attack)
        assert attack.stdout is not None
        report: dict[str, Any] = json.loads(attack.stdout.read())
        return report, took
    finally:
        attack.kill()
        attack.wait()


@pytest.mark.parametrize("name", SERVICES)
def test_a_hostile_neighbour_costs_little_and_holds_nobody_up(name: str, tmp_path: Path) -> None:
    # Each of these has code of its own; where it is shared, what takes its time is left out.
    seconds = 7 if name in {"api", "agent", "deadman"} else 2
    with running(command(name, tmp_path)) as daemon:
        wait_for(daemon)
        assert daemon.process is not None
        before = psutil.Process(daemon.process.pid).memory_info().rss
        report, took = attacked(daemon, seconds, *hostile.HTTP)
        grown = peak(daemon.process.pid) - before
        median, worst = statistics.median(took), max(took)
        told = f"{grown / MIB:.0f} MiB more, {median:.2f} s, {worst:.2f} s at worst"
        sys.stdout.write(f"{name}: {told}\n{json.dumps(report)}\n")
        assert grown < MEMORY, told
        assert worst < PATIENCE, told
        for kind, came_of_it in report.items():
            if seconds > HEAD_SECONDS or kind not in hostile.SLOW:
                assert came_of_it["ended"], f"{kind}: the server ends none of its connections"
        assert daemon.get("/health")[0]
        # What strangers send is refused: it is no defect that somebody has to look at.
        assert "Exception in ASGI application" not in daemon.log.read_text()


@pytest.mark.parametrize("name", SERVICES)
def test_a_stranger_is_told_no_more_than_is_needed(name: str, tmp_path: Path) -> None:
    with running(command(name, tmp_path)) as daemon:
        wait_for(daemon)
        status, metrics = daemon.get("/metrics")
        assert status == 200
        series = {
            line.split("{")[0].split(" ")[0] for line in metrics.splitlines() if line[0] != "#"
        }
        assert series
        # Nothing about Python and the process: systemd and the node exporter know about that.
        assert {one for one in series if one.startswith(("python_", "process_"))} == set()
        assert {one for one in series if one.endswith("_created")} == set()
        for path in ("/", "/docs", "/docs/start.js", "/openapi.json", "/redoc"):
            assert daemon.get(path)[0] == 404, path

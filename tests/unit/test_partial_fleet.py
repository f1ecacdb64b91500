"""A service whose server is away: what is excused by whom, and what still fails its gate."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.prime_spark.fleet.plugins.filter import prime_spark as FILTERS
from ansible_collections.prime_spark.fleet.plugins.module_utils import units as UNITS


def body(**failing: bool) -> bytes:
    """The /health of a service; components that fail, and whether they are essential."""
    components = {name: {"ok": False, "essential": value} for name, value in failing.items()}
    components["http"] = {"ok": True, "essential": True}
    return json.dumps({"status": "failing", "components": components}).encode()


@pytest.fixture
def service() -> Iterator[Any]:
    """A server that answers 503 with what `service.body` holds; `service.url` is its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(503)
            self.end_headers()
            self.wfile.write(self.server.body)  # type: ignore[attr-defined]

        def log_message(self, format: str, *args: object) -> None:
            pass

    server: Any = HTTPServer(("127.0.0.1", 0), Handler)
    server.url = f"http://127.0.0.1:{server.server_port}/health"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def gate(service: Any, *absent: str) -> None:
    UNITS.wait_healthy({"url": service.url, "timeout": 0, "absent": list(absent)}, [])


def test_what_is_away_is_excused(service: Any) -> None:
    service.body = body(kafka=True, redis=False)
    gate(service, "kafka", "database")


def test_what_else_fails_is_not_excused(service: Any) -> None:
    service.body = body(kafka=True, database=True)
    with pytest.raises(UNITS.TreeError, match="database"):
        gate(service, "kafka")


def test_without_anybody_away_nothing_is_excused(service: Any) -> None:
    service.body = body(kafka=True)
    with pytest.raises(UNITS.TreeError, match=r"expected .* to answer 200"):
        gate(service)


@pytest.mark.parametrize("text", [b"", b"oops", b"[]", b'{"components": 1}', b'{"components": {}}'])
def test_an_answer_that_says_nothing_excuses_nothing(service: Any, text: bytes) -> None:
    service.body = text
    with pytest.raises(UNITS.TreeError):
        gate(service, "kafka")


def test_only_hosts_that_this_run_could_not_reach_are_away() -> None:
    hostvars = {
        "away": {"host_precheck": {"unreachable": True}},
        "refused": {"host_precheck": {"failed": True}},
        "there": {"host_precheck": {"changed": False}},
        "outside the limit": {},
    }
    servers = {"kafka": list(hostvars), "database": ["there"]}
    assert FILTERS.absent_servers(servers, hostvars) == {"kafka": ["away"]}


ROOT = Path(__file__).resolve().parents[2]
# Components that are essential to a service and lie on its own host.
LOCAL = {
    "telemetry": {"sampling", "buffer"},
    "exporters": {"kafka"},
    # The health gate asks for /ready instead.
    "deadman": {"heartbeat"},
}
# What no role deploys yet.
WITHOUT_ROLE = {"backup", "hook"}
PACKAGES = {
    "agent": "spark_agent",
    "api": "api",
    "deadman": "deadman",
    "dispatcher": "dispatcher",
    "ingest": "ingest",
    "kafka_exporter": "exporters",
    "telemetry": "telemetry",
}


def test_a_role_names_the_servers_of_all_that_is_essential_to_its_service() -> None:
    """Else the service's health gate fails, and rolls it back, while one of them is away."""
    sources = ROOT / "files" / "python_services" / "src" / "prime_spark"
    found: dict[str, set[str]] = {role: set() for role in PACKAGES.values()}
    for path in sources.rglob("*.py"):
        package = path.relative_to(sources).parts[0]
        if package in WITHOUT_ROLE:
            continue
        for name in re.findall(r'expect\(\s*"(\w+)", essential=True', path.read_text()):
            found[PACKAGES[package]].add(name)
    assert found["ingest"] and found["dispatcher"]
    for role, essential in found.items():
        tasks = yaml.safe_load((ROOT / "roles" / role / "tasks" / "main.yml").read_text())
        named = {n for t in tasks for n in t.get("vars", {}).get("python_service_servers", {})}
        assert named == essential - LOCAL.get(role, set()), role

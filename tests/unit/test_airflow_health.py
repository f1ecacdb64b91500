"""Airflow's health check: the answer of each part, and of none."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "roles/airflow/templates/stack/config/airflow/health.sh"
HEALTHY = {"scheduler": {"status": "healthy"}, "dag_processor": {"status": "healthy"}}
ILL = {"scheduler": {"status": "healthy"}, "dag_processor": {"status": "unhealthy"}}


@contextmanager
def serving(status: int, body: object) -> Iterator[int]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            # Without spaces, as the API server writes it.
            self.wfile.write(json.dumps(body, separators=(",", ":")).encode())

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server.server_port
        server.shutdown()


def check(part: str, port: int, directory: Path) -> int:
    """Exit status of the script, asking at this port of the loopback instead."""
    text = SCRIPT.read_text()
    for place in (
        "host=api-server port=8080",
        "host=127.0.0.1 port=8080",
        "host=127.0.0.1 port=8974",
    ):
        assert place in text
        text = text.replace(place, f"host=127.0.0.1 port={port}")
    (directory / "health.sh").write_text(text)
    command = ["/bin/bash", str(directory / "health.sh"), part]
    return subprocess.run(command, stderr=subprocess.DEVNULL, timeout=20, check=False).returncode


@pytest.mark.parametrize(
    ("part", "status", "body", "well"),
    [
        ("api-server", 200, {"version": "3"}, True),
        ("api-server", 500, {}, False),
        ("scheduler", 200, HEALTHY, True),
        ("scheduler", 503, HEALTHY, False),
        ("dag-processor", 200, HEALTHY, True),
        ("dag-processor", 200, ILL, False),
        ("dag-processor", 500, HEALTHY, False),
    ],
)
def test_each_part_says_whether_it_is_well(
    tmp_path: Path, part: str, status: int, body: object, well: bool
) -> None:
    with serving(status, body) as port:
        assert (check(part, port, tmp_path) == 0) is well


def test_nobody_there_is_not_well(tmp_path: Path) -> None:
    with serving(200, HEALTHY) as port:
        pass
    for part in ("api-server", "scheduler", "dag-processor"):
        assert check(part, port, tmp_path) != 0

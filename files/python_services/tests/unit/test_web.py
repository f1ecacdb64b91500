"""What every web service of ours answers, by the example of the agent as systemd starts it."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

COMPONENTS = {"nas", "synthesis", "recognition"}


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[int]:
    """The port of a running agent without Redis, Kafka and models; it ends cleanly on SIGTERM."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = tmp_path / "config.json"
    settings = {
        "name": "agent-1",
        "http": {"host": "127.0.0.1", "port": port},
        "callers": {"dispatcher": {"credential": "agent_token"}},
        "state": str(tmp_path / "tasks.sqlite"),
        "nas": {"directory": str(tmp_path / "nas")},
    }
    config.write_text(json.dumps(settings))
    (tmp_path / "agent_token").write_text("correct-horse-battery-staple")
    notify = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(notify))
        systemd.settimeout(20)
        process = subprocess.Popen(
            [Path(sys.executable).with_name("prime-spark-agent"), "--config", config],
            env={
                **os.environ,
                "NOTIFY_SOCKET": str(notify),
                "CREDENTIALS_DIRECTORY": str(tmp_path),
            },
        )
        try:
            assert systemd.recv(100) == b"READY=1"
            yield port
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=15) == 0
        finally:
            process.kill()
            process.wait()


def get(port: int, path: str, method: str = "GET") -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request(method, path)
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    return answer.status, body


def test_health_metrics_and_nothing_more(agent: int) -> None:
    port = agent
    status, body = get(port, "/health")
    assert status == 200
    health = json.loads(body)
    assert (health["service"], health["status"]) == ("agent", "degraded"), "there is no share"
    assert set(health["components"]) == COMPONENTS

    for path in ("/", "/docs", "/openapi.json", "/api/auth/login", "/a/b/c"):
        assert get(port, path)[0] == 404
    assert get(port, "/health", "POST")[0] == 405
    assert get(port, "/health", "PROPFIND")[0] == 405

    status, text = get(port, "/metrics")
    assert status == 200
    counts = {
        line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1])
        for line in text.splitlines()
        if line.startswith("fastapi_requests_total")
    }
    assert counts == {
        'fastapi_requests_total{endpoint="/health",method="GET",status="200"}': 1,
        'fastapi_requests_total{endpoint="unmatched",method="GET",status="404"}': 5,
        'fastapi_requests_total{endpoint="/health",method="POST",status="405"}': 1,
        'fastapi_requests_total{endpoint="/health",method="OTHER",status="405"}': 1,
    }
    buckets = [
        line.split('le="')[1].split('"')[0]
        for line in text.splitlines()
        if line.startswith("fastapi_request_duration_seconds_bucket") and 'method="GET"' in line
        and 'endpoint="/health"' in line
    ]  # fmt: skip
    assert {"1.0", "2.5", "10.0", "+Inf"} <= set(buckets)


def test_answers_quickly(agent: int) -> None:
    started = time.monotonic()
    for _ in range(100):
        assert get(agent, "/health")[0] == 200
    assert time.monotonic() - started < 5

"""What every web service of ours answers, by the example of the agent as systemd starts it."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn
from uvicorn.server import ServerState

from prime_spark.runtime import http_protocol
from prime_spark.runtime.asgi import Message, Receive, Send

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
        "http": {"host": "127.0.0.1", "port": port, "metrics_readers": ["127.0.0.3"]},
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


def get(port: int, path: str, method: str = "GET", source: str = "127.0.0.1") -> tuple[int, str]:
    connection = http.client.HTTPConnection(
        "127.0.0.1", port, timeout=30, source_address=(source, 0)
    )
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


def test_metrics_are_for_their_readers_only(agent: int) -> None:
    for source, wanted in (("127.0.0.1", 200), ("127.0.0.2", 403), ("127.0.0.3", 200)):
        status, text = get(agent, "/metrics", source=source)
        assert (status, "fastapi_requests_total" in text) == (wanted, wanted == 200)
        assert get(agent, "/health", source=source)[0] == 200


def raw(port: int, request: bytes) -> list[int]:
    """Send bytes on one connection; return the statuses of the answers until it is closed."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        client.sendall(request)
        answers = b""
        try:
            while piece := client.recv(65536):
                answers += piece
        except ConnectionResetError:
            pass  # it hung up on what it had not read
    return [int(part.split(b" ", 1)[0]) for part in answers.split(b"HTTP/1.1 ")[1:]]


def test_a_head_is_bounded_in_bytes_and_in_fields(agent: int) -> None:
    start, end = b"GET /health HTTP/1.1\r\nConnection: close\r\n", b"\r\n"
    for more, status in (
        (b"X: " + b"x" * 16_000 + b"\r\n", 200),
        (b"X: " + b"x" * 16_400 + b"\r\n", 431),
        (b"X: y\r\n" * 63, 200),
        (b"X: y\r\n" * 64, 431),
        (b"X: " + b"x" * 4_000 + b"\r\n" + b"Y: " + b"y" * 13_000 + b"\r\n", 431),
    ):
        assert raw(agent, start + more + end) == [status], len(more)
    assert raw(agent, b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\n\r\n") == [431]
    # One without an end is refused while it comes, and so is what may follow a body in pieces.
    assert raw(agent, start + b"X: " + b"x" * 40_000) == [431]
    pieces = b"POST /nowhere HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n"
    assert len(raw(agent, pieces + b"X: " + b"x" * 100_000)) <= 1


def test_requests_that_wait_for_no_answer_are_answered_in_turn_but_not_without_end(
    agent: int,
) -> None:
    request, last = (
        b"GET /health HTTP/1.1\r\n\r\n",
        b"GET /health HTTP/1.1\r\nConnection: close\r\n\r\n",
    )
    assert raw(agent, request * 9 + last) == [200] * 10
    assert len(raw(agent, request * 1000)) < 100


def test_a_head_may_take_its_time_but_not_for_ever(agent: int) -> None:
    with socket.create_connection(("127.0.0.1", agent), timeout=30) as slow:
        slow.sendall(b"GET /health HTTP/1.1\r\n")
        with socket.create_connection(("127.0.0.1", agent), timeout=30) as silent:
            assert silent.recv(1) == b""
        with contextlib.suppress(ConnectionResetError):
            assert slow.recv(1) == b""


@pytest.mark.parametrize(
    "begun",
    [b"GET /next HTTP/1.1\r\nHost:", b"POST /next HTTP/1.1\r\nContent-Length: 9\r\n\r\nx"],
    ids=["head", "body"],
)
def test_what_a_client_begins_while_it_is_answered_does_not_end_the_answer(
    begun: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    for limit in ("HEAD_SECONDS", "_BODY_SECONDS"):
        monkeypatch.setattr(http_protocol, limit, 0.1)

    async def main() -> None:
        asked, known = asyncio.Event(), asyncio.Event()

        async def app(scope: Message, receive: Receive, send: Send) -> None:
            if scope["path"] == "/slow":
                asked.set()
                await known.wait()
            else:
                while (await receive()).get("more_body"):
                    pass
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"known"})

        config = uvicorn.Config(app, log_config=None, lifespan="off", timeout_keep_alive=1)
        config.load()
        server = await asyncio.get_running_loop().create_server(
            lambda: http_protocol.LimitedProtocol(
                config=config, server_state=ServerState(), app_state={}
            ),
            "127.0.0.1",
        )
        host, port = server.sockets[0].getsockname()
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(b"GET /slow HTTP/1.1\r\n\r\n" + begun)
        await asked.wait()
        # One that begins now and sends nothing is ended after what was begun before.
        silent, other = await asyncio.open_connection(host, port)
        with contextlib.suppress(ConnectionResetError):
            assert await silent.read() == b""
        known.set()
        assert await reader.readuntil(b"known\r\n0\r\n\r\n")
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b"", "what was begun is not waited for without end"
        writer.close()
        other.close()
        server.close()

    asyncio.run(asyncio.wait_for(main(), 60))

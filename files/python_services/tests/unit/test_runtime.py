from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import uvicorn
from prometheus_client import CollectorRegistry, Counter

from prime_spark.config import HttpConfig
from prime_spark.runtime import asgi, atomic
from prime_spark.runtime.backoff import Backoff
from prime_spark.runtime.health import Health
from prime_spark.runtime.http import StatusServer, listening_socket
from prime_spark.runtime.notify import Notifier
from prime_spark.runtime.service import Service, StoppedError, close_within, run_service, within


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[tuple[str, socket.socket]]:
    """A socket like systemd's, and its address."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(10)
        yield str(tmp_path / "notify"), listener


def test_notify(systemd: tuple[str, socket.socket]) -> None:
    address, listener = systemd
    notifier = Notifier({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "3000000"})
    assert notifier.watchdog_seconds == 1.5
    notifier.ready()
    notifier.status("two\nlines")
    notifier.watchdog()
    notifier.stopping()
    messages = [listener.recv(100) for _ in range(4)]
    assert messages == [b"READY=1", b"STATUS=two lines", b"WATCHDOG=1", b"STOPPING=1"]


def test_notify_without_systemd() -> None:
    Notifier({}).ready()
    Notifier({"NOTIFY_SOCKET": "/nowhere"}).ready()
    assert Notifier({}).watchdog_seconds is None
    assert Notifier({"WATCHDOG_USEC": "x"}).watchdog_seconds is None
    assert Notifier({"WATCHDOG_USEC": "100", "WATCHDOG_PID": "1"}).watchdog_seconds is None


def test_notify_does_not_wait_for_a_full_queue(systemd: tuple[str, socket.socket]) -> None:
    address, _ = systemd
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as filler:
        filler.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                filler.sendto(b"x", address)
    started = time.monotonic()
    Notifier({"NOTIFY_SOCKET": address}).watchdog()
    assert time.monotonic() - started < 20


def test_notify_abstract_socket() -> None:
    name = f"prime-spark-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind("\0" + name)
        listener.settimeout(10)
        Notifier({"NOTIFY_SOCKET": "@" + name}).ready()
        assert listener.recv(100) == b"READY=1"


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "state"
    atomic.replace(path, b"old")
    with path.open("rb") as reader:
        atomic.replace(path, b"new", 0o600)
        assert reader.read() == b"old"
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"new", 0o600)
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        atomic.replace(tmp_path / "folder", b"new")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["folder", "state"]


def test_backoff_grows_to_its_limit_and_starts_over() -> None:
    backoff = Backoff(first=1.0, limit=8.0)
    pauses = [backoff.next() for _ in range(6)]
    for pause, ceiling in zip(pauses, [1, 2, 4, 8, 8, 8], strict=True):
        assert ceiling / 2 <= pause <= ceiling
    backoff.reset()
    assert backoff.next() <= 1.0


def test_health() -> None:
    health = Health("x")
    assert health.response()[0] == 200
    health.expect("kafka", essential=True)
    health.expect("redis", essential=False)
    status, body = health.response()
    assert status == 503
    assert json.loads(body)["components"]["kafka"]["detail"] == "not yet connected"
    assert health.set("kafka", True)
    assert not health.set("kafka", True), "no change"
    status, body = health.response()
    assert (status, json.loads(body)["status"]) == (200, "degraded")
    health.set("redis", True)
    assert health.status == "ok"


def free_port() -> int:
    with listening_socket("127.0.0.1", 0) as listener:
        return int(listener.getsockname()[1])


def exchange(
    requests: list[bytes], source: str = "127.0.0.1", readers: tuple[str, ...] = ()
) -> list[bytes]:
    """Send each request on a connection of its own from `source`; return the raw answers."""
    registry = CollectorRegistry()
    Counter("things", "Things", registry=registry).inc(3)

    async def go() -> list[bytes]:
        answers = []
        http = HttpConfig(host="127.0.0.1", port=free_port(), metrics_readers=readers)
        async with StatusServer(Health("x"), registry, http).listening():
            for request in requests:
                reader, writer = await asyncio.open_connection(
                    http.host, http.port, local_addr=(source, 0)
                )
                writer.write(request)
                answers.append(await asyncio.wait_for(reader.read(), 10))
                writer.close()
        return answers

    return asyncio.run(go())


def test_status_server() -> None:
    answers = exchange(
        [
            b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n",
            b"GET /metrics?x=1 HTTP/1.0\r\n\r\n",
            b"HEAD /health HTTP/1.1\r\n\r\n",
            b"POST /health HTTP/1.1\r\n\r\n",
            b"GET /other HTTP/1.1\r\n\r\n",
            b"nonsense\r\n\r\n",
            b"GET /health HTTP/1.1\r\nX: " + b"x" * 10_000 + b"\r\n\r\n",
        ]
    )
    status = [answer.split(b" ", 2)[1] for answer in answers]
    assert status == [b"200", b"200", b"200", b"405", b"404", b"400", b"431"]
    assert json.loads(answers[0].split(b"\r\n\r\n")[1])["status"] == "ok"
    assert b"things_total 3.0" in answers[1]
    assert answers[2].endswith(b"\r\n\r\n")
    assert b"Allow: GET" in answers[3]


def test_the_status_server_shows_metrics_to_their_readers_only() -> None:
    asked = [b"GET /metrics HTTP/1.1\r\n\r\n", b"GET /health HTTP/1.1\r\n\r\n"]
    for source, readers, wanted in (
        ("127.0.0.2", (), [b"403", b"200"]),
        ("127.0.0.2", ("127.0.0.3", "127.0.1.0/24"), [b"403", b"200"]),
        ("127.0.0.2", ("127.0.0.3", "127.0.0.2"), [b"200", b"200"]),
        ("127.0.0.2", ("127.0.0.0/24",), [b"200", b"200"]),
    ):
        answers = exchange(asked, source, readers)
        assert [answer.split(b" ", 2)[1] for answer in answers] == wanted
        assert (b"things_total" in answers[0]) == (wanted[0] == b"200")


def test_status_server_hangs_up_on_the_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prime_spark.runtime.http._TIMEOUT_SECONDS", 0.05)
    assert exchange([b"GET /health HTTP/1.1\r\n"]) == [b""]


def test_status_server_ends_the_oldest_of_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prime_spark.runtime.http._MAX_CONNECTIONS", 5)

    async def go() -> None:
        http = HttpConfig(host="127.0.0.1", port=free_port())
        async with StatusServer(Health("x"), CollectorRegistry(), http).listening():
            idle = [await asyncio.open_connection(http.host, http.port) for _ in range(20)]
            reader, writer = await asyncio.open_connection(http.host, http.port)
            writer.write(b"GET /health HTTP/1.1\r\n\r\n")
            assert (await reader.read()).startswith(b"HTTP/1.1 200")
            async with asyncio.timeout(4):  # long before the silent are hung up on
                for silent, _ in idle[:15]:
                    with contextlib.suppress(ConnectionResetError):
                        assert await silent.read() == b""
            assert not idle[-1][0].at_eof()
            for _, silent_writer in idle:
                silent_writer.close()

    asyncio.run(go())


def test_listens_on_an_address_that_is_not_there_yet() -> None:
    listening_socket("198.51.100.77", 0).close()
    with listening_socket("127.0.0.1", 0) as holder:
        port = holder.getsockname()[1]
        with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{port}: .*in use"):
            listening_socket("127.0.0.1", port)


def test_within() -> None:
    async def stubborn() -> None:
        while True:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                await asyncio.sleep(30)  # as a client that flushes while being cancelled
                raise

    async def go() -> float:
        loop = asyncio.get_running_loop()
        started = loop.time()
        with pytest.raises(TimeoutError, match=r"within 0\.05 s"):
            await within(0.05, stubborn())
        assert await within(1, asyncio.sleep(0, "value")) == "value"
        with pytest.raises(ZeroDivisionError):
            await within(1, _fail())
        return loop.time() - started

    assert asyncio.run(go()) < 25


async def _fail() -> None:
    raise ZeroDivisionError


def test_close_within_lets_a_slow_client_finish_by_itself() -> None:
    closed = []

    async def close() -> None:
        await asyncio.sleep(0.1)
        closed.append(True)
        raise OSError("and then that")

    async def go() -> None:
        await close_within(0.01, close())
        assert not closed
        await asyncio.sleep(0.2)
        assert closed

    asyncio.run(go())


def test_a_client_that_never_closes_does_not_keep_the_process() -> None:
    async def stubborn() -> None:
        while True:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(3600)

    async def main(_service: Service) -> None:
        await close_within(0.01, stubborn())

    started = time.monotonic()
    assert run(main) == 0
    assert time.monotonic() - started < 30


def test_unless_stopped() -> None:
    async def main(service: Service) -> None:
        assert await service.unless_stopped(asyncio.sleep(0, "value")) == "value"
        with pytest.raises(ZeroDivisionError):
            await service.unless_stopped(_fail())
        asyncio.get_running_loop().call_later(0.05, service.stop.set)
        with pytest.raises(StoppedError):
            await service.unless_stopped(asyncio.sleep(3600))

    assert run(main) == 0


def run(main: Callable[[Service], Awaitable[None]], **options: float) -> int:
    return run_service(main, **options)


def test_service_ends_with_its_work() -> None:
    async def done(_service: Service) -> None:
        return

    assert run(done) == 0

    async def broken(_service: Service) -> None:
        raise RuntimeError

    assert run(broken) == 1


def test_sigterm_drains(
    systemd: tuple[str, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, listener = systemd
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    drained = []

    async def main(service: Service) -> None:
        service.ready("up")
        os.kill(os.getpid(), signal.SIGTERM)
        assert await service.pause(60), "pause ends when told to stop"
        await asyncio.sleep(0.05)
        drained.append(True)

    assert run(main) == 0
    assert drained
    assert [listener.recv(100) for _ in range(3)] == [b"READY=1", b"STATUS=up", b"STOPPING=1"]


def test_what_does_not_drain_is_cancelled() -> None:
    cancelled = []

    async def main(service: Service) -> None:
        service.stop.set()
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    assert run(main, drain_seconds=0.05) == 1
    assert cancelled


def test_watchdog_starves_when_a_loop_stalls(
    systemd: tuple[str, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, listener = systemd
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    monkeypatch.setenv("WATCHDOG_USEC", "20000")
    listener.setblocking(False)
    seen: list[tuple[list[str], bool]] = []

    async def main(service: Service) -> None:
        service.beat("bad")
        for _ in range(12):
            service.beat("good")
            fed = drained(listener)
            seen.append((service.stalled(), fed))
            await asyncio.sleep(0.05)

    assert run(main, stall_seconds=0.3) == 0
    assert seen[1] == ([], True)
    assert seen[-1] == (["bad"], False)


def drained(listener: socket.socket) -> bool:
    """Take all messages; return whether the watchdog was among them."""
    messages = []
    with contextlib.suppress(BlockingIOError):
        while True:
            messages.append(listener.recv(100))
    return b"WATCHDOG=1" in messages


def test_logs_are_one_json_object_per_line() -> None:
    program = textwrap.dedent(
        """
        import logging, structlog
        from prime_spark.runtime.logs import configure_logging

        configure_logging("x", "info")
        structlog.get_logger("a").info("one", number=1)
        structlog.get_logger("a").debug("hidden")
        logging.getLogger("library").warning("two %s", "words")
        logging.getLogger("aiokafka").info("hidden")
        try:
            1 / 0
        except ZeroDivisionError:
            structlog.get_logger("a").exception("three", odd=object)
        """
    )
    output = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout
    lines = [json.loads(line) for line in output.splitlines()]
    assert [line["event"] for line in lines] == ["one", "two words", "three"]
    assert all(line["service"] == "x" and line["timestamp"].endswith("Z") for line in lines)
    assert "ZeroDivisionError" in lines[2]["exception"]


class CountingServer(asgi._Server):
    """A web server that keeps the moments at which it looks at the clock."""

    def __init__(self) -> None:
        super().__init__(uvicorn.Config(lambda *_: None, log_config=None))
        self.config.load()
        self.ticks: list[float] = []

    async def on_tick(self, counter: int) -> bool:
        self.ticks.append(time.monotonic())
        return await super().on_tick(counter)


def test_an_idle_web_server_wakes_once_a_second() -> None:
    """For the date in its answers; uvicorn's own loop does so ten times a second."""

    async def main() -> None:
        server = CountingServer()
        looping = asyncio.create_task(server.main_loop())
        async with asyncio.timeout(20):
            while len(server.ticks) < 2:
                await asyncio.sleep(0.01)
            server.end()
            await looping
        assert server.ticks[1] - server.ticks[0] > 0.9 * asgi._TICK_SECONDS

    asyncio.run(main())


def test_a_web_server_ends_between_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asgi, "_TICK_SECONDS", 3600.0)

    async def main() -> None:
        server = CountingServer()
        looping = asyncio.create_task(server.main_loop())
        async with asyncio.timeout(20):
            while not server.ticks:
                await asyncio.sleep(0.01)
            server.end()
            await looping

    asyncio.run(main())

"""The dead-man receiver: silence raises an alarm once, a heartbeat ends it, across restarts."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from prime_spark.config import ConfigError, decode_config
from prime_spark.deadman.channels import channels
from prime_spark.deadman.service import DeadmanService
from prime_spark.deadman.settings import DeadmanConfig
from prime_spark.deadman.watch import MessageError, State, StateFile, Watch, is_heartbeat
from prime_spark.runtime.notify import Notifier
from prime_spark.runtime.service import Service

TOKEN = "t" * 32


def message(status: str = "firing", name: str = "DeadMansSwitch") -> bytes:
    alert = {"status": status, "labels": {"alertname": name}, "fingerprint": "f"}
    return json.dumps({"version": "4", "status": status, "alerts": [alert]}).encode()


# --- the decision -----------------------------------------------------------------------------


class Clock:
    """Both clocks, moved by hand."""

    def __init__(self) -> None:
        self.wall, self.running = 1_000_000.0, 500.0

    def advance(self, seconds: float) -> None:
        self.wall += seconds
        self.running += seconds


def watch(clock: Clock, state: State | None = None) -> Watch:
    return Watch(
        state or State(),
        timeout_seconds=60,
        repeat_seconds=600,
        clock=lambda: clock.wall,
        monotonic=lambda: clock.running,
    )


def test_alarm_at_the_timeout_and_not_before() -> None:
    clock = Clock()
    watchdog = watch(clock)
    clock.advance(59.9)
    assert not watchdog.check()
    clock.advance(0.1)
    assert watchdog.check()
    assert watchdog.alarm
    assert not watchdog.check(), "raised twice"
    assert watchdog.state.silent_since == 1_000_000.0


def test_a_heartbeat_ends_the_alarm_and_restarts_the_time() -> None:
    clock = Clock()
    watchdog = watch(clock)
    clock.advance(61)
    watchdog.check()
    assert watchdog.heartbeat()
    assert not watchdog.alarm
    clock.advance(59)
    assert not watchdog.check()
    assert not watchdog.heartbeat()


def test_a_corrected_clock_raises_no_alarm() -> None:
    clock = Clock()
    watchdog = watch(clock)
    clock.wall += 86_400
    assert not watchdog.check()
    clock.wall -= 2 * 86_400
    clock.running += 60
    assert watchdog.check()


def test_each_channel_is_told_once_then_again_after_the_interval() -> None:
    clock = Clock()
    watchdog = watch(clock)
    assert watchdog.due(["a", "b"]) == {}, "an all-clear that nobody waits for"
    clock.advance(61)
    watchdog.check()
    notices = watchdog.due(["a", "b"])
    assert notices.keys() == {"a", "b"}
    assert notices["a"].alarm
    watchdog.told("a", notices["a"])
    assert watchdog.due(["a", "b"]).keys() == {"b"}
    clock.advance(599)
    assert watchdog.due(["a"]) == {}
    clock.advance(1)
    assert watchdog.due(["a"])["a"].alarm
    watchdog.heartbeat()
    back = watchdog.due(["a", "b"])
    assert back.keys() == {"a"}, "b never heard of the alarm"
    assert not back["a"].alarm
    watchdog.told("a", back["a"])
    assert watchdog.due(["a"]) == {}


def test_an_alarm_outlives_a_restart_and_silence_before_it_does_not_count(tmp_path: Path) -> None:
    clock = Clock()
    file = StateFile(tmp_path / "state.json")
    first = watch(clock)
    first.heartbeat()
    file.write(first.state)
    clock.advance(3600)
    second = watch(clock, file.read())
    assert not second.check(), "nobody could reach a receiver that did not run"
    clock.advance(60)
    assert second.check()
    second.told("a", second.due(["a"])["a"])
    file.write(second.state)
    third = watch(clock, file.read())
    assert third.alarm
    assert third.due(["a"]) == {}
    third.heartbeat()
    assert not third.due(["a"])["a"].alarm


@pytest.mark.parametrize("content", [b"", b"{", b'{"heartbeat": "x"}', b"\xff\xfe"])
def test_an_unreadable_state_counts_as_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "state.json").write_bytes(content)
    assert StateFile(tmp_path / "state.json").read() == State()


def test_what_is_a_heartbeat() -> None:
    assert is_heartbeat(message(), "DeadMansSwitch")
    assert not is_heartbeat(message("resolved"), "DeadMansSwitch")
    assert not is_heartbeat(message(name="ServiceDown"), "DeadMansSwitch")
    for nonsense in (b"", b"[]", b'{"alerts": [1]}', b"\xff"):
        with pytest.raises(MessageError):
            is_heartbeat(nonsense, "DeadMansSwitch")


# --- the service ------------------------------------------------------------------------------


class Inbox:
    """A web hook that notes what it gets, and can be told to refuse."""

    def __init__(self) -> None:
        self.got: list[tuple[dict[str, str], bytes]] = []
        self.status = 200
        inbox = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if inbox.status == 200:
                    inbox.got.append((dict(self.headers), body))
                self.send_response(inbox.status)
                self.send_header("Location", "/elsewhere")
                self.end_headers()

            def do_GET(self) -> None:  # where a redirect would lead
                self.do_POST()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/alarm"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def statuses(self) -> list[str]:
        return [json.loads(body)["status"] for _, body in self.got]


@pytest.fixture
def inbox() -> Iterator[Inbox]:
    box = Inbox()
    yield box
    box.server.shutdown()
    box.server.server_close()


@pytest.fixture
def credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / "credentials"
    directory.mkdir()
    (directory / "token").write_text(TOKEN)
    (directory / "hook").write_text("h" * 32 + "\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(directory))


def settings(tmp_path: Path, port: int, hook: str, **changes: Any) -> DeadmanConfig:
    document = {
        "http": {"host": "127.0.0.1", "port": port},
        "credential": "token",
        "state_path": str(tmp_path / "state.json"),
        "timeout_seconds": 2.0,
        "repeat_seconds": 3600,
        "webhooks": {"ops": {"url": hook, "credential": "hook"}},
        **changes,
    }
    return decode_config(json.dumps(document), DeadmanConfig)


@contextlib.asynccontextmanager
async def running(config: DeadmanConfig) -> AsyncIterator[CollectorRegistry]:
    registry = CollectorRegistry()
    service = Service(Notifier({}), stall_seconds=60)
    receiver = DeadmanService(config, channels(config), registry)
    task = asyncio.create_task(receiver.run(service))
    try:
        await until(lambda: answer(config, "/ready")[0] == 200)
        yield registry
    finally:
        service.stop.set()
        await task


def answer(
    config: DeadmanConfig, path: str, body: bytes | None = None, token: str | None = TOKEN
) -> tuple[int, bytes]:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    url = f"http://127.0.0.1:{config.http.port}{path}"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=30) as got:
            return got.status, got.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()
    except OSError:
        return 0, b""


async def until(good: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not await asyncio.to_thread(good):
        assert time.monotonic() < deadline, "not in time"
        await asyncio.sleep(0.05)


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.mark.usefixtures("credentials")
def test_saves_at_the_same_time_do_not_disturb_each_other(tmp_path: Path, port: int) -> None:
    config = settings(tmp_path, port, "http://127.0.0.1:1/")
    receiver = DeadmanService(config, channels(config), CollectorRegistry())

    async def save() -> None:
        for heartbeat in range(30):
            receiver._watch.state.heartbeat = float(heartbeat)
            await asyncio.gather(*(receiver._save() for _ in range(10)))
            assert receiver._health.is_ok("state")
            assert StateFile(tmp_path / "state.json").read().heartbeat == heartbeat

    asyncio.run(save())


@pytest.mark.usefixtures("credentials")
def test_silence_is_told_once_and_a_heartbeat_ends_it(
    tmp_path: Path, port: int, inbox: Inbox
) -> None:
    config = settings(tmp_path, port, inbox.url)

    async def go() -> None:
        async with running(config) as registry:
            assert (await asyncio.to_thread(answer, config, "/health"))[0] == 200
            await until(lambda: inbox.statuses() == ["firing"])
            headers, body = inbox.got[0]
            assert headers["Authorization"] == "Bearer " + "h" * 32
            assert "No heartbeat" in json.loads(body)["text"]
            assert (await asyncio.to_thread(answer, config, "/health"))[0] == 503
            assert registry.get_sample_value("prime_spark_deadman_alarm") == 1
        # Started again, it says nothing twice and still is in alarm.
        async with running(config) as registry:
            assert (await asyncio.to_thread(answer, config, "/health"))[0] == 503
            assert registry.get_sample_value("prime_spark_deadman_alarm") == 1
            status, said = await asyncio.to_thread(answer, config, "/heartbeat", message())
            assert (status, said) == (200, b"heard\n")
            await until(lambda: inbox.statuses() == ["firing", "resolved"])
            assert registry.get_sample_value("prime_spark_deadman_heartbeats_total") == 1

    asyncio.run(go())


@pytest.mark.usefixtures("credentials")
@pytest.mark.parametrize("refusal", [500, 302])
def test_a_channel_that_fails_is_tried_again(
    tmp_path: Path, port: int, inbox: Inbox, refusal: int
) -> None:
    inbox.status = refusal
    config = settings(tmp_path, port, inbox.url)
    failed = ("prime_spark_deadman_notifications_total", {"channel": "ops", "result": "failed"})

    async def go() -> None:
        async with running(config) as registry:
            assert registry.get_sample_value(*failed) == 0
            await until(lambda: (registry.get_sample_value(*failed) or 0) > 0)
            health = json.loads((await asyncio.to_thread(answer, config, "/health"))[1])
            assert str(refusal) in health["components"]["channel ops"]["detail"]
            inbox.status = 200
            await until(lambda: inbox.statuses() == ["firing"])

    asyncio.run(go())


@pytest.mark.usefixtures("credentials")
def test_only_the_switch_with_the_token_is_a_heartbeat(
    tmp_path: Path, port: int, inbox: Inbox
) -> None:
    config = settings(tmp_path, port, inbox.url, timeout_seconds=600)

    async def go() -> None:
        async with running(config) as registry:

            async def post(body: bytes, token: str | None = TOKEN) -> int:
                return (await asyncio.to_thread(answer, config, "/heartbeat", body, token))[0]

            assert await post(message(), None) == 401
            assert await post(message(), "x" * 32) == 401
            assert await post(message(), "") == 401
            assert await post(b"nonsense") == 400
            assert await post(b"x" * 300_000) == 413
            assert await post(message("resolved")) == 200
            assert registry.get_sample_value("prime_spark_deadman_heartbeats_total") == 0
            assert (await asyncio.to_thread(answer, config, "/heartbeat"))[0] == 404
            assert await post(message()) == 200
            assert registry.get_sample_value("prime_spark_deadman_heartbeats_total") == 1

    asyncio.run(go())


@pytest.mark.usefixtures("credentials")
def test_text_for_receivers_that_show_a_body_as_it_is(
    tmp_path: Path, port: int, inbox: Inbox
) -> None:
    config = settings(tmp_path, port, "", webhooks={"ntfy": {"url": inbox.url, "format": "text"}})

    async def go() -> None:
        async with running(config):
            await until(lambda: inbox.got)
            headers, body = inbox.got[0]
            assert headers["Title"].startswith("Prime Spark: monitoring is silent")
            assert body.startswith(b"No heartbeat")
            assert "Authorization" not in headers

    asyncio.run(go())


def test_settings_that_cannot_work_are_refused(tmp_path: Path) -> None:
    email = {"host": "m", "sender": "a", "recipients": ["b"], "username": "u"}
    with pytest.raises(ConfigError, match="username needs a credential"):
        settings(tmp_path, 1, "http://x", email=email)
    with pytest.raises(ConfigError, match="url"):
        settings(tmp_path, 1, "file:///etc/passwd")
    with pytest.raises(ConfigError, match="every address"):
        settings(tmp_path, 1, "http://x", http={"host": "0.0.0.0", "port": 1})

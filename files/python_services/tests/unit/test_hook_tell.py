"""What the hook tells others: a commit's status at its forge, and Alertmanager what is wrong."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from msgspec.structs import replace
from test_hook_drift import report, rules
from test_hook_queue import job

from prime_spark.hook import alerts, forge
from prime_spark.hook.alerts import Teller
from prime_spark.hook.drift import Drift
from prime_spark.hook.firing import Firing
from prime_spark.hook.forge import Forge
from prime_spark.hook.queue import Queue
from prime_spark.hook.rules import Remediation
from prime_spark.hook.settings import AlertmanagerConfig, CommitStatusConfig, Subject
from prime_spark.runtime.health import Health
from prime_spark.runtime.notify import Notifier
from prime_spark.runtime.service import Service

COMMIT = "a" * 40


class Listener:
    """Hears what is posted; answers as told, then with 201. `gives` answers whoever asks."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, dict[str, str], Any]] = []
        self.answers: list[tuple[int, str]] = []
        self.asked: list[str] = []
        self.gives: tuple[int, str] = (200, "[]")
        listener = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                listener.heard.append((self.path, dict(self.headers.items()), body))
                self.answer(*(listener.answers.pop(0) if listener.answers else (201, "{}")))

            def do_GET(self) -> None:
                listener.asked.append(self.path)
                self.answer(*listener.gives)

            def answer(self, status: int, text: str) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def listener() -> Iterator[Listener]:
    listener = Listener()
    yield listener
    listener.server.shutdown()
    listener.server.server_close()


@pytest.fixture
def queue(tmp_path: Path) -> Queue:
    return Queue(tmp_path / "queue.sqlite")


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (forge, alerts):
        monkeypatch.setattr(module, "_LOOK_SECONDS", 0.02)
    monkeypatch.setattr(forge, "_LONGEST_PAUSE_SECONDS", 0.05)


@asynccontextmanager
async def working(part: Forge | Teller | Firing) -> AsyncIterator[None]:
    service = Service(Notifier(), stall_seconds=60)
    task = asyncio.create_task(part.run(service))
    try:
        yield
    finally:
        service.stop.set()
        await task


async def until(good: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not good():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


def settings(kind: str, url: str) -> CommitStatusConfig:
    return CommitStatusConfig(
        kind=kind,  # type: ignore[arg-type]
        url=url,
        project="example/fleet",
        credential="forge",
        run_url="https://hook.example.org/runs/{run}",
    )


@pytest.mark.parametrize(
    ("kind", "path", "header", "name", "states"),
    [
        (
            "github",
            f"/repos/example/fleet/statuses/{COMMIT}",
            ("authorization", "Bearer t0ken"),
            "context",
            ["pending", "failure", "success"],
        ),
        (
            "gitlab",
            f"/api/v4/projects/example%2Ffleet/statuses/{COMMIT}",
            ("private-token", "t0ken"),
            "name",
            ["pending", "failed", "success"],
        ),
        (
            "forgejo",
            f"/api/v1/repos/example/fleet/statuses/{COMMIT}",
            ("authorization", "token t0ken"),
            "context",
            ["pending", "failure", "success"],
        ),
    ],
)
def test_a_commit_s_status_is_told_as_its_forge_wants_it(
    kind: str,
    path: str,
    header: tuple[str, str],
    name: str,
    states: list[str],
    listener: Listener,
    queue: Queue,
) -> None:
    queue.put(job("no-commit"), "user:x")
    secret = "failed: h1; /etc/secret"
    run = queue.put(replace(job(), commit=COMMIT), "user:x").run

    async def go() -> None:
        async with working(Forge(settings(kind, listener.url), "t0ken", queue, Health("hook"))):
            await until(lambda: listener.heard)
            queue.end(run, "failed", secret)
            await until(lambda: len(listener.heard) == 2)
            queue.end(queue.put(replace(job(), commit=COMMIT), "user:x").run, "succeeded")
            await until(lambda: len(listener.heard) == 3 and not queue.untold())

    asyncio.run(go())
    assert {heard for heard, _, _ in listener.heard} == {path}
    for _, headers, _ in listener.heard:
        assert {key.lower(): value for key, value in headers.items()}[header[0]] == header[1]
    bodies = [body for _, _, body in listener.heard]
    assert [body["state"] for body in bodies] == states
    assert {body[name] for body in bodies} == {"prime-spark/deploy"}
    assert bodies[1]["description"] == f"run {run}: failed"
    assert bodies[1]["target_url"] == f"https://hook.example.org/runs/{run}"
    assert secret not in json.dumps(bodies)


def test_a_forge_that_is_away_is_told_later_and_one_that_refuses_is_not_asked_again(
    listener: Listener, queue: Queue
) -> None:
    listener.answers = [
        (503, ""),
        (429, ""),
        (422, '{"message": "no commit"}'),
        (400, '{"message": "Cannot transition status via :run from :running"}'),
    ]
    for rule in ("one", "two", "three"):
        queue.put(replace(job(rule), commit=COMMIT), "user:x")
    health = Health("hook")

    async def go() -> None:
        async with working(Forge(settings("gitlab", listener.url), "t0ken", queue, health)):
            await until(lambda: not queue.untold())

    asyncio.run(go())
    names = [body["name"].removeprefix("prime-spark/") for _, _, body in listener.heard]
    assert names == ["one", "one", "one", "two", "three"]
    assert health.is_ok("commit status")


def test_what_is_wrong_is_told_until_it_is_over(listener: Listener, queue: Queue) -> None:
    drift = Drift(queue)
    document = rules()
    config = AlertmanagerConfig(url=listener.url, username="hook", credential="alertmanager")
    brakes = Remediation(cooldown_seconds=1.0)
    listener.answers = [(500, "")]

    def told() -> dict[tuple[str, str], bool]:
        """Of the last post: which alerts, and whether they go on."""
        return {
            (
                alert["labels"]["alertname"],
                alert["labels"].get("host") or alert["labels"]["rule"],
            ): alert["endsAt"] > now
            for alert in listener.heard[-1][2]
        }

    def run(rule: str, end: str, host: str = "h1", **change: Any) -> int:
        number = queue.put(replace(job(rule), **change), "user:x").run
        queue.start(number, [host])
        if end == "waits":
            queue.wait_approval(number, "hash", 3)
        else:
            queue.end(number, end, "h1 failed")  # type: ignore[arg-type]
        return number

    async def go() -> None:
        teller = Teller(config, "p4ss", queue, document, Health("hook"))
        async with working(teller):
            run("drift", "failed")
            # Of a rule that is in the file no more.
            run("old", "failed")
            for _ in range(2):
                run("gone", "failed", remediation=brakes)
            waits = run("mend", "waits", approval_seconds=60.0)
            drift.store(1, 10.0, report(h1="drifted", h2="in sync"), whole=True)
            await until(lambda: len(listener.heard) > 1 and len(listener.heard[-1][2]) == 4)
            assert told() == {
                ("HookRunFailed", "drift"): True,
                ("HookBreakerOpen", "h1"): True,
                ("HookWaitsForApproval", "mend"): True,
                ("HookHostDrifted", "h1"): True,
            }
            run("drift", "succeeded", "h2")
            queue.reject(waits, "alice")
            queue.reset("gone", "h1")
            drift.store(2, 20.0, report(h1="in sync", h2="in sync"), whole=True)
            ended = len(listener.heard)
            await until(lambda: len(listener.heard) > ended and not teller._told)

    now = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(time.time() + 60))
    asyncio.run(go())
    over: set[str] = set()
    for _, headers, body in listener.heard:
        assert headers["Authorization"].startswith("Basic ")
        over |= {each["labels"]["alertname"] for each in body if each["endsAt"] < now}
    assert over == {"HookRunFailed", "HookBreakerOpen", "HookWaitsForApproval", "HookHostDrifted"}
    # Nothing is left to tell.
    assert [path for path, _, _ in listener.heard if path != "/api/v2/alerts"] == []


def test_only_what_is_wanted_is_told(queue: Queue) -> None:
    failed = queue.put(job("drift"), "user:x").run
    queue.start(failed, ["h1"])
    queue.end(failed, "failed", "h1 failed")
    waits = queue.put(replace(job("mend"), approval_seconds=60.0), "user:x").run
    queue.start(waits, ["h1"])
    queue.wait_approval(waits, "hash", 3)

    def names(*tells: Subject) -> set[str]:
        found = alerts.alerts_of(queue, Drift(queue), rules(), tells)
        return {dict(labels)["alertname"] for labels in found}

    assert names("waiting", "drift") == {"HookWaitsForApproval"}
    assert names("failed", "waiting", "breakers") == {"HookRunFailed", "HookWaitsForApproval"}

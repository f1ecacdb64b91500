"""The hook's HTTP side: what is taken, what is refused and how, and nothing that ends in a 5xx."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import structlog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from test_hook_rules import JSON

from hook_deliveries import KINDS, SECRETS, body_of, encoded, signed
from prime_spark.config import HttpConfig
from prime_spark.hook.intake import Intake
from prime_spark.hook.metrics import HookMetrics
from prime_spark.hook.queue import Queue
from prime_spark.hook.rules import Condition, Match, Rules, read_rules
from prime_spark.hook.settings import LimitsConfig
from prime_spark.runtime.health import Health

BODY_BYTES = 20_000
# What is to replace the other secret.
NEXT = "whsec_" + base64.b64encode(b"n" * 32).decode()


def rules() -> Rules:
    """A source of each kind and a rule for each; two take a value from the body."""
    paths = {"alertmanager": "labels.host", "standard_webhooks": "data.channel"}
    values = ["main", "stable", "control-pc-1"]
    document: dict[str, Any] = {"sources": [], "playbooks": ["site.yml"], "rules": []}
    for kind in KINDS:
        name = kind.replace("_", "-")
        run: dict[str, Any] = {"playbook": "site.yml"}
        if kind in paths:
            run["from_body"] = {"value": {"field": paths[kind], "enum": values}}
        source = {
            "name": name,
            "kind": kind.removesuffix("_signed"),
            "secrets": [f"{kind}_a", f"{kind}_b"],
        }
        document["sources"].append(source)
        document["rules"].append({"name": name, "source": name, "run": run})
    return read_rules(json.dumps(document), "rules.yml")


class Hook:
    def __init__(self, folder: Path) -> None:
        self.queue = Queue(folder / "queue.sqlite", max_queued=len(KINDS))
        health = Health("hook")
        health.expect("queue", essential=True)
        health.set("queue", True)
        self.woken = 0
        self.health = health
        self.use(rules())

    def use(self, document: Rules) -> None:
        """Let rules be those of the hook from now on."""
        self.registry = CollectorRegistry()
        intake = Intake(
            document,
            {kind.replace("_", "-"): [NEXT, SECRETS[kind]] for kind in KINDS},
            self.queue,
            limits=LimitsConfig(body_bytes=BODY_BYTES, unverified_bytes=2 * BODY_BYTES),
            health=self.health,
            metrics=HookMetrics(self.registry),
            wake=self.wake,
        )
        self.app = intake.app(HttpConfig(host="127.0.0.1", port=1), self.registry)
        self.bare_app = intake.bare_app()

    def wake(self) -> None:
        self.woken += 1

    def post(self, kind: str, headers: Any = None, body: Any = b"", **signing: Any) -> Any:
        if headers is None:
            headers, body = signed(kind, **signing)
        return self.request("POST", f"/hooks/{kind.replace('_', '-')}", headers, body)

    def request(self, method: str, path: str, headers: Any, body: Any) -> httpx.Response:
        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://hook") as client:
                return await client.request(method, path, headers=headers, content=body)

        return asyncio.run(ask())


@pytest.fixture
def hook(tmp_path: Path) -> Iterator[Hook]:
    hook = Hook(tmp_path)
    yield hook
    hook.queue.close()


@pytest.mark.parametrize("kind", KINDS)
def test_a_signed_delivery_is_a_run_and_the_same_again_is_not(kind: str, hook: Hook) -> None:
    answer = hook.post(kind)
    assert (answer.status_code, answer.json()) == (202, {"run": 1, "runs": [1]})
    (run,) = hook.queue.pending()
    assert run.rule == kind.replace("_", "-")
    again = hook.post(kind)
    assert again.status_code == (200 if kind == "alertmanager" else 409)
    assert "came before, for run 1" in again.text
    assert (len(hook.queue.pending()), hook.woken) == (1, 1)


def other(kind: str) -> bytes:
    """A recorded body again, but other bytes."""
    return json.dumps(body_of(kind), separators=(", ", ":")).encode()


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_signed_as_its_source_signs_is_refused_and_audited(
    kind: str, hook: Hook
) -> None:
    headers, body = signed(kind)
    wrong = base64.b64encode(b"w" * 32).decode()
    attempts = {
        "wrong secret": hook.post(kind, secret=wrong),
        "unsigned": hook.post(kind, {}, body),
    }
    if kind not in {"gitlab", "alertmanager"}:
        attempts["other bytes"] = hook.post(kind, headers, other(kind))
    if kind in {"gitlab_signed", "standard_webhooks"}:
        attempts["stale"] = hook.post(kind, at=time.time() - 400)
        attempts["early"] = hook.post(kind, at=time.time() + 400)
    for what, answer in attempts.items():
        assert answer.status_code == 401, what
        assert SECRETS[kind] not in answer.text
        assert set(answer.json()) == {"detail"}
    with structlog.testing.capture_logs() as lines:
        hook.post(kind, headers | {"X-Ignored": SECRETS[kind]}, body, secret=wrong)
        hook.post(kind, {}, body)
    assert [(line["audit"], line["status"], line["runs"]) for line in lines] == [
        ("delivery", 202, [{"run": 1, "how": "new"}]),
        ("delivery", 401, []),
    ]
    assert SECRETS[kind] not in str(lines)


def test_wrong_ways_to_ask(hook: Hook) -> None:
    headers, body = signed("github")
    for method in ("GET", "PUT", "DELETE", "PATCH"):
        answer = hook.request(method, "/hooks/github", headers, body)
        assert answer.status_code == 405, method
    for path in ("/hooks/nobody", "/hooks/", "/hooks/github/x", "/hooks/%00"):
        assert hook.request("POST", path, headers, body).status_code == 404, path
    huge = encoded("github", body_of("github") | {"padding": "x" * BODY_BYTES})
    assert hook.post("github", *signed("github", huge)).status_code == 413

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(huge), 1000):
            yield huge[start : start + 1000]

    assert hook.post("github", signed("github", huge)[0], pieces()).status_code == 413
    for text in (b"", b"[]", b"ref=main", b'{"a": NaN}', b'{"a":' * 3000):
        assert hook.post("github", *signed("github", text)).status_code == 400
    assert hook.queue.pending() == []


def test_strangers_find_deliveries_and_nothing_else(hook: Hook) -> None:
    hook.app = hook.bare_app
    assert hook.post("github").status_code == 202
    assert hook.post("github", {}, b"{}").status_code == 401
    for path in ("/", "/health", "/metrics", "/login", "/runs", "/static/page.css", "/docs"):
        for method in ("GET", "POST"):
            assert hook.request(method, path, {}, b"").status_code == 404, path


def test_a_sender_that_goes_away_is_no_defect(hook: Hook) -> None:
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"x-hub-signature-256", b"x")]
    scope: dict[str, Any] = {"type": "http", "method": "POST", "headers": headers}
    scope |= {
        "path": "/hooks/github",
        "query_string": b"",
        "http_version": "1.1",
        "client": None,
        "server": None,
    }
    asyncio.run(hook.app(scope, receive, send))
    assert sent[0]["status"] == 400


@pytest.mark.parametrize("kind", KINDS)
def test_a_delivery_without_a_proof_is_refused_before_its_body_is_read(
    kind: str, hook: Hook
) -> None:
    read: list[bytes] = []

    async def pieces() -> AsyncIterator[bytes]:
        read.append(b"x")
        yield b"x"

    assert hook.post(kind, {"X-GitHub-Delivery": "1"}, pieces()).status_code == 401
    # What has a proof is read.
    assert read == []
    assert hook.post(kind, signed(kind)[0], pieces()).status_code in {400, 401}
    assert read == [b"x"]


def test_senders_together_fill_no_more_memory_than_is_allowed(hook: Hook) -> None:
    headers, body = signed("github")
    answers: list[int] = []

    async def play() -> None:
        full, over = asyncio.Event(), asyncio.Event()

        async def slow() -> AsyncIterator[bytes]:
            yield b"x" * (BODY_BYTES - 10)
            full.set()
            await over.wait()

        transport = httpx.ASGITransport(hook.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://hook") as client:

            async def post(content: Any) -> httpx.Response:
                return await client.post("/hooks/github", headers=headers, content=content)

            tasks = []
            for _ in range(2):
                full.clear()
                tasks.append(asyncio.create_task(post(slow())))
                await full.wait()
            refused = await post(body)
            answers.append(refused.status_code)
            assert int(refused.headers["Retry-After"]) > 0
            over.set()
            answers.extend([(await task).status_code for task in tasks])
            answers.append((await post(body)).status_code)

    asyncio.run(play())
    assert answers == [503, 401, 401, 202]


def test_a_value_that_the_rule_does_not_take_is_refused(hook: Hook) -> None:
    body = body_of("standard_webhooks")
    body["data"]["channel"] = "nightly"
    answer = hook.post("standard_webhooks", data=encoded("standard_webhooks", body))
    assert answer.status_code == 422
    assert answer.json() == {
        "detail": "field data.channel is not what rule standard-webhooks takes"
    }


def test_what_no_rule_matches_starts_nothing_and_may_come_again(hook: Hook) -> None:
    notification = body_of("alertmanager")
    for alert in notification["alerts"]:
        alert["status"] = "resolved"
    for _ in range(2):
        answer = hook.post("alertmanager", data=encoded("alertmanager", notification))
        assert (answer.status_code, answer.json()["run"]) == (200, None)
    assert hook.queue.pending() == []


# Whoever has recorded a notification of Alertmanager has its token.
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "alertmanager"])
def test_what_no_rule_matched_cannot_be_sent_again_under_other_headers(
    kind: str, hook: Hook
) -> None:
    document = rules()
    (rule,) = (rule for rule in document.rules if rule.source == kind.replace("_", "-"))
    wanted = Match(headers={"X-Event": Condition(equals="push")})
    changed = msgspec.structs.replace(rule, match=wanted)
    hook.use(msgspec.structs.replace(document, rules=[changed]))
    headers, body = signed(kind)
    assert hook.post(kind, headers, body).status_code == 200
    again = hook.post(kind, headers | {"X-Event": "push"}, body)
    assert (again.status_code, again.json()) == (409, {"detail": "this delivery came before"})
    assert hook.queue.pending() == []


def test_alerts_of_one_notification_are_runs_of_their_own(hook: Hook) -> None:
    notification = body_of("alertmanager")
    first = notification["alerts"][0]
    second = first | {"fingerprint": "00", "labels": {"host": "main"}}
    odd = first | {"fingerprint": "01", "labels": {"host": "elsewhere"}}
    notification["alerts"] = [first, odd, second]
    with structlog.testing.capture_logs() as lines:
        answer = hook.post("alertmanager", data=encoded("alertmanager", notification))
    assert answer.json() == {"run": 1, "runs": [1, 2]}
    assert lines[0]["refused"] == ["field labels.host is not what rule alertmanager takes"]
    jobs = [run.job for run in hook.queue.pending()]
    assert [job and job.variables["value"] for job in jobs] == ["control-pc-1", "main"]


def test_a_full_queue_says_when_to_come_again(hook: Hook) -> None:
    def alert(host: str, fingerprint: str) -> httpx.Response:
        notification = body_of("alertmanager")
        notification["alerts"][0] |= {"fingerprint": fingerprint, "labels": {"host": host}}
        return hook.post("alertmanager", data=encoded("alertmanager", notification))

    for kind in KINDS:
        assert hook.post(kind).status_code == 202
    answer = alert("stable", "1")
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "30")
    # What waits already needs no room, and what was refused is not known.
    assert alert("control-pc-1", "2").status_code == 202
    hook.queue.end(1, "succeeded")
    assert alert("stable", "1").status_code == 202


def test_a_queue_that_cannot_be_written_is_answered_503(hook: Hook) -> None:
    hook.queue.close()
    assert hook.post("github").status_code == 503
    assert hook.request("GET", "/health", {}, b"").status_code == 503


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_nothing_that_is_made_up_starts_anything(hook: Hook, data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(KINDS))
    headers, body = signed(kind)
    names = st.sampled_from(sorted(headers))
    changes = data.draw(
        st.dictionaries(names, st.text(st.characters(max_codepoint=255)), min_size=1)
    )
    kept = {name: value for name, value in headers.items() if name not in changes}
    made_up = {name: value for name, value in changes.items() if value != headers[name]}
    if data.draw(st.booleans()):
        body = data.draw(
            st.binary(max_size=300) | JSON.map(lambda value: json.dumps(value).encode())
        )
    raw = [
        (name.encode(), value.encode("latin-1", "replace"))
        for name, value in {**kept, **made_up}.items()
    ]
    answer = hook.post(kind, raw, body)
    assert answer.status_code < 500
    if answer.status_code == 202:
        # Changed was only what nobody signs.
        assert body == signed(kind)[1] or kind in {"gitlab", "alertmanager"}

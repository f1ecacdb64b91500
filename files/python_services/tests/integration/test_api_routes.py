"""Every route with real servers behind it, and what each says when asked badly."""

from __future__ import annotations

import base64
import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest
from redis import Redis
from tests.integration.servers import KafkaServer, LlamaServer, PostgresServer, RedisServer

from api_support import Api, Servers, fields, problem, running_api
from prime_spark.memory.nas import NASStorage
from prime_spark.tasks import scripts
from support import eventually, read_all


@pytest.fixture(scope="module")
def servers(
    redis: RedisServer,
    kafka: KafkaServer,
    postgres: PostgresServer,
    llama: LlamaServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Servers:
    servers = Servers(redis, kafka, postgres, "api_routes", edge=llama, cloud=llama)
    servers.prepare(tmp_path_factory.mktemp("prepare"))
    return servers


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("api")


@pytest.fixture(scope="module")
def api(servers: Servers, folder: Path) -> Iterator[Api]:
    limits = {"memory_body_bytes": 3_000_000}
    with running_api(servers, folder, limits=limits) as running:
        yield running


def set_value(api: Api, key: str, **body: Any) -> Any:
    return api.ask("POST", "/api/memory/set", user="oscar", json={"key": key, **body})


def get_value(api: Api, key: str) -> Any:
    return api.ask("GET", f"/api/memory/get/{key}", user="vera")


# -- memory -------------------------------------------------------------------------------------


@pytest.mark.parametrize("tier", [1, 2, 3])
def test_values_come_back_as_they_went_in(api: Api, tier: int) -> None:
    for number, value in enumerate([{"a": [1, None, "ü\0"]}, "text", 0, None, [], 1.5, 2**53]):
        key = f"json:{tier}:{number}"
        answer = set_value(api, key, value=value, tier=tier)
        assert (answer.status_code, answer.json()) == (200, {"key": key, "tier": tier})
        found = get_value(api, key)
        assert found.headers["content-type"] == "application/json"
        assert (found.json(), found.headers["x-memory-tier"]) == (value, str(tier))
    data = bytes(range(256))
    key = f"bytes:{tier}"
    encoded = base64.b64encode(data).decode()
    assert set_value(api, key, value_base64=encoded, tier=tier).status_code == 200
    found = get_value(api, key)
    assert (found.content, found.headers["content-type"]) == (data, "application/octet-stream")
    deleted = api.ask("DELETE", f"/api/memory/{key}", user="oscar")
    assert deleted.json()["key"] == key
    assert tier in deleted.json()["tiers"]
    problem(get_value(api, key), 404, "not_found")
    problem(api.ask("DELETE", f"/api/memory/{key}", user="oscar"), 404, "not_found")


def test_a_value_ends_with_its_ttl(api: Api, redis: RedisServer) -> None:
    assert set_value(api, "short", value=1, ttl=1).status_code == 200
    assert get_value(api, "short").json() == 1
    eventually(lambda: get_value(api, "short").status_code == 404)
    assert set_value(api, "default", value=1).status_code == 200
    with Redis.from_url(redis.url) as administrator:
        assert 0 < administrator.ttl("memory:default") <= 3600


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"key": "k"}, "body"),
        ({"key": "k", "value": 1, "value_base64": "AA=="}, "body"),
        ({"key": "../k", "value": 1}, "body.key"),
        ({"key": "k.json", "value": 1}, "body.key"),
        ({"key": "", "value": 1}, "body.key"),
        ({"key": "k", "value": 1, "tier": 4}, "body.tier"),
        ({"key": "k", "value": 1, "tier": "1"}, "body.tier"),
        ({"key": "k", "value": 1, "ttl": 0}, "body.ttl"),
        ({"key": "k", "value": 1, "ttl": 1.5}, "body.ttl"),
        ({"key": "k", "value": 1, "tier": 2, "ttl": 60}, "body.ttl"),
        ({"key": "k", "value_base64": "#"}, "body.value_base64"),
        ({"key": "k", "value": 1, "more": 1}, "body.more"),
        ([], "body"),
    ],
)
def test_bad_input_names_its_field(api: Api, body: Any, field: str) -> None:
    answer = api.ask("POST", "/api/memory/set", user="oscar", json=body)
    assert fields(problem(answer, 422, "invalid")) == [field]


@pytest.mark.parametrize(
    "body",
    [
        b'{"key": "k", "value": NaN}',
        b'{"key": "k", "value": 1e999}',
        b'{"key": "k", "value": "\\ud800"}',
        b'{"key": "k", "value": "\xff"}',
        b'{"key": "k", "value": ' + b"[" * 5000 + b"]" * 5000 + b"}",
        b'{"key": "k", "value": 1',
        b"",
        b"\xff\xfe",
    ],
)
def test_what_is_not_json_is_refused(api: Api, body: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    answer = api.ask("POST", "/api/memory/set", user="oscar", content=body, headers=headers)
    problem(answer, 422, "invalid")


@pytest.mark.parametrize("key", ["..%2Fetc", "k.json", "%00", "-k", "a" * 129, "%FF", "a b"])
def test_bad_keys_are_refused(api: Api, key: str) -> None:
    assert get_value(api, key).status_code in {404, 422}
    assert api.ask("DELETE", f"/api/memory/{key}", user="oscar").status_code in {404, 422}


def test_a_value_too_large_for_its_tier(api: Api) -> None:
    text = "x" * 300_000
    body = problem(set_value(api, "large", value=text), 413, "too_large")
    assert "too large for tier 1" in body["detail"]
    assert set_value(api, "large", value=text, tier=2).status_code == 200
    assert get_value(api, "large").json() == text


# -- sizes --------------------------------------------------------------------------------------


def test_a_body_too_large_is_refused_before_it_is_read(api: Api) -> None:
    too_large = {"username": "a", "password": "x" * 200_000}
    problem(api.ask("POST", "/api/auth/login", json=too_large), 413, "too_large")
    problem(set_value(api, "k", value="x" * 3_000_000, tier=2), 413, "too_large")
    head = (
        b"POST /api/auth/login HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        b"Content-Length: 999999999999\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", api.daemon.port), timeout=30) as connection:
        connection.sendall(head)  # and not a byte of the body
        answer = connection.recv(4096)
    assert answer.startswith(b"HTTP/1.1 413 ")


def test_a_large_body_is_taken_from_who_is_known_only_and_many_take_turns(api: Api) -> None:
    large = {"key": "large", "value": "x" * 1_000_000, "tier": 2}
    problem(api.ask("POST", "/api/memory/set", json=large), 401, "not_authenticated")
    pieces = iter([b'{"key": "large", ', b'"value": "x", "tier": 2}'])
    headers = {"Content-Type": "application/json"}
    answer = api.ask("POST", "/api/memory/set", content=pieces, headers=headers)
    problem(answer, 401, "not_authenticated")
    api.token("oscar")
    with ThreadPoolExecutor(20) as pool:
        answers = pool.map(
            lambda number: set_value(api, f"large-{number}", value="x" * 1_000_000, tier=2),
            range(20),
        )
        assert [answer.status_code for answer in answers] == [200] * 20


@pytest.mark.parametrize("path", ["/api/memory/set", "/api/llm/generate"])
def test_who_may_not_write_is_refused_before_a_large_body_is_read(api: Api, path: str) -> None:
    head = (
        f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {api.token('vera')}\r\nContent-Length: 1000000\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", api.daemon.port), timeout=30) as connection:
        connection.sendall(head.encode())  # and not a byte of the body
        answer = connection.recv(4096)
    assert answer.startswith(b"HTTP/1.1 403 ")


def test_a_body_of_unknown_size_is_bounded_too(api: Api) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(10_000):
            yield b"x" * 1000

    headers = {"Content-Type": "application/json"}
    answer = api.ask("POST", "/api/auth/login", content=endless(), headers=headers)
    problem(answer, 413, "too_large")
    short = iter([b'{"username": "alice", ', b'"password": "wrong"}'])
    answer = api.ask("POST", "/api/auth/login", content=short, headers=headers)
    problem(answer, 401, "not_authenticated")


# -- language models ----------------------------------------------------------------------------


def generate(api: Api, **body: Any) -> Any:
    wanted = {"max_tokens": 8, "seed": 1, "temperature": 0, **body}
    return api.ask("POST", "/api/llm/generate", user="oscar", json=wanted)


def test_generate_and_the_cache(api: Api, llama: LlamaServer) -> None:
    answer = generate(api, prompt="Say hello")
    assert answer.status_code == 200, answer.text
    first = answer.json()
    assert (first["source"], first["backend"], first["model"]) == ("edge", "edge", llama.model)
    assert first["response"]
    assert first["input_tokens"] > 0
    assert 0 < first["output_tokens"] <= 8
    again = generate(api, prompt="Say hello").json()
    assert (again["source"], again["response"]) == ("cache", first["response"])
    fresh = generate(api, prompt="Say hello", use_cache=False).json()
    assert fresh["source"] == "edge"


def test_generate_as_it_is_made(api: Api) -> None:
    answer = generate(api, prompt="Tell me a story", stream=True, use_cache=False)
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = [
        (lines[0].removeprefix("event: "), json.loads(lines[1].removeprefix("data: ")))
        for block in answer.text.strip().split("\n\n")
        if (lines := block.split("\n"))
    ]
    names = [name for name, _ in events]
    assert names[-1] == "done"
    assert set(names[:-1]) == {"token"}
    whole = "".join(data["text"] for name, data in events if name == "token")
    assert events[-1][1]["response"] == whole
    assert len(names) > 2


def test_a_model_that_nobody_has(api: Api) -> None:
    body = problem(generate(api, prompt="hello", model="nothing"), 404, "rejected")
    assert set(body["reasons"]) == {"edge", "cloud"}


def test_models(api: Api, llama: LlamaServer) -> None:
    answer = api.ask("GET", "/api/llm/models", user="vera")
    assert answer.json() == [
        {"id": llama.model, "backends": ["edge", "cloud"], "sources": ["edge", "cloud"]}
    ]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "body.prompt"),
        ({"prompt": ""}, "body.prompt"),
        ({"prompt": 1}, "body.prompt"),
        ({"prompt": "a", "max_tokens": 0}, "body.max_tokens"),
        ({"prompt": "a", "temperature": 3}, "body.temperature"),
        ({"prompt": "a", "stop": ["a"] * 5}, "body.stop"),
    ],
)
def test_bad_requests_to_models(api: Api, body: dict[str, Any], field: str) -> None:
    answer = api.ask("POST", "/api/llm/generate", user="oscar", json=body)
    assert fields(problem(answer, 422, "invalid")) == [field]


# -- tasks --------------------------------------------------------------------------------------


def submit(api: Api, user: str = "oscar", **body: Any) -> Any:
    wanted = {"task_type": "voice_synthesis", "payload": {"text": "go forward"}, **body}

    def answer() -> Any:
        # A busy machine may not bring the task to the disk in time; the client is to ask again.
        got = api.ask("POST", "/api/tasks/submit", user=user, json=wanted)
        return None if got.status_code == 503 else [got]

    return eventually(answer, what="a task is taken")[0]


def finish(redis: RedisServer, task_id: str, state: str, **more: Any) -> None:
    """Let a task have ended, as the dispatcher does it."""
    with Redis.from_url(redis.url) as administrator:
        fields = {name: msgspec.json.encode(value) for name, value in more.items()}
        administrator.hset(
            scripts.TASK + task_id,
            mapping={"state": state, "finished": time.time(), "updated": time.time(), **fields},
        )


def test_a_task_and_its_artifact(api: Api, redis: RedisServer, folder: Path) -> None:
    answer = submit(api, priority="HIGH")
    assert answer.status_code == 200, answer.text
    task_id = answer.json()["task_id"]
    task = api.ask("GET", f"/api/tasks/{task_id}", user="oscar").json()
    assert (task["status"], task["owner"], task["priority"]) == ("PENDING", "oscar", "HIGH")
    early = api.ask("GET", f"/api/tasks/{task_id}/artifact", user="oscar")
    problem(early, 409, "not_completed")

    key = f"artifacts/voice/task-{task_id}.wav"
    NASStorage(folder / "share").store(key, b"RIFF....WAVE")
    finish(redis, task_id, "COMPLETED", result={"artifact": key, "content_type": "audio/wav"})
    task = api.ask("GET", f"/api/tasks/{task_id}", user="oscar").json()
    assert (task["status"], task["result"]["artifact"]) == ("COMPLETED", key)
    wav = api.ask("GET", f"/api/tasks/{task_id}/artifact", user="oscar")
    assert (wav.status_code, wav.content) == (200, b"RIFF....WAVE")
    assert wav.headers["content-type"] == "audio/wav"
    assert wav.headers["content-disposition"] == f'attachment; filename="task-{task_id}.wav"'


def test_somebody_elses_task_is_not_there_but_for_an_admin(api: Api) -> None:
    task_id = submit(api).json()["task_id"]
    for path in (f"/api/tasks/{task_id}", f"/api/tasks/{task_id}/artifact"):
        problem(api.ask("GET", path, user="vera"), 404, "not_found")
    assert api.ask("GET", f"/api/tasks/{task_id}", user="alice").status_code == 200


def test_the_same_task_twice_is_one(api: Api) -> None:
    first = submit(api, task_id="mine-1")
    assert first.json() == {"task_id": "mine-1"}
    assert submit(api, task_id="mine-1").json() == {"task_id": "mine-1"}
    problem(submit(api, task_id="mine-1", priority="LOW"), 409, "conflict")
    problem(submit(api, "alice", task_id="mine-1"), 409, "conflict")


@pytest.mark.parametrize(
    "result",
    [
        {"artifact": "memory/secret"},
        {"artifact": "artifacts/../memory/secret"},
        {"artifact": "artifacts/nothing.wav"},
        {"artifact": 1},
        {"text": "no file"},
        None,
    ],
)
def test_only_artifacts_can_be_fetched(
    api: Api, redis: RedisServer, folder: Path, result: Any
) -> None:
    NASStorage(folder / "share").store("memory/secret", b"x")
    task_id = submit(api).json()["task_id"]
    finish(redis, task_id, "COMPLETED", result=result)
    answer = api.ask("GET", f"/api/tasks/{task_id}/artifact", user="oscar")
    assert answer.status_code in {404, 503}
    assert answer.content != b"x"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"task_type": "cooking"}, "body.task_type"),
        ({"priority": "URGENT"}, "body.priority"),
        ({"payload": []}, "body.payload"),
        ({"payload": {"text": "x" * 70_000}}, "body.payload"),
        ({"task_id": "a/b"}, "body.task_id"),
    ],
)
def test_bad_tasks(api: Api, body: dict[str, Any], field: str) -> None:
    assert fields(problem(submit(api, **body), 422, "invalid")) == [field]


def test_an_unknown_task(api: Api) -> None:
    problem(api.ask("GET", "/api/tasks/nothing", user="alice"), 404, "not_found")
    problem(api.ask("GET", "/api/tasks/a%20b", user="alice"), 422, "invalid")


# -- health, metrics, events, documents ---------------------------------------------------------


def test_detailed_health(api: Api, folder: Path) -> None:
    def well() -> dict[str, Any] | None:
        seen = api.subsystems()
        names = ("redis", "kafka", "timescale", "nas", "llm")
        return seen if all(seen[name]["status"] == "ok" for name in names) else None

    seen = eventually(well, 30)
    assert set(seen) == {"redis", "kafka", "timescale", "nas", "vpn", "agents", "llm"}
    assert [backend["name"] for backend in seen["llm"]["backends"]] == ["edge", "cloud"]
    # No VPN and no agents here, and it says so.
    assert (seen["vpn"]["status"], seen["agents"]["status"]) == ("down", "down")
    assert "no dispatcher" in seen["agents"]["detail"]
    now = time.time()
    peers = [
        {
            "name": name,
            "vpn_address": "10.0.0.1",
            "endpoint": "192.0.2.1:1",
            "latest_handshake": int(now - age),
            "rx_bytes": 1,
            "tx_bytes": 2,
        }
        for name, age in (("near", 10), ("far", 1000))
    ]
    status = {"time": now, "interface": "wg0", "peers": peers}
    (folder / "vpn.json").write_text(json.dumps(status))
    vpn = eventually(lambda: v if (v := api.subsystems()["vpn"])["peers"] else None)
    assert (vpn["status"], vpn["detail"]) == ("degraded", "no recent handshake with far")
    assert [(peer["name"], peer["healthy"]) for peer in vpn["peers"]] == [
        ("far", False),
        ("near", True),
    ]
    eventually(lambda: api.daemon.health()["status"] == "ok", 20)
    assert set(api.daemon.health()["components"]) == {"redis", "kafka", "timescale", "nas"}


def test_metrics_are_named_as_the_dashboards_want_them(api: Api) -> None:
    get_value(api, "nothing")
    api.ask("GET", "/random/path")
    text = api.daemon.get("/metrics")[1]
    series = {line.rsplit(" ", 1)[0] for line in text.splitlines()}
    endpoint = 'endpoint="/api/memory/get/{key}",method="GET"'
    assert f'fastapi_requests_total{{{endpoint},status="404"}}' in series
    assert 'fastapi_requests_total{endpoint="unmatched",method="GET",status="404"}' in series
    for bucket in ("0.5", "1.0", "2.5", "10.0", "60.0", "+Inf"):
        name = "fastapi_request_duration_seconds_bucket"
        labels = f'endpoint="/api/memory/get/{{key}}",le="{bucket}",method="GET"'
        assert f"{name}{{{labels}}}" in series
    assert "nothing" not in text
    assert "random" not in text


def test_every_call_is_an_event_with_its_id(api: Api, kafka: KafkaServer) -> None:
    answers = {
        "memory_set": set_value(api, "event", value=1),
        "none": get_value(api, "nothing"),
        "login_failed": api.login("alice", "wrong"),
    }
    generated = generate(api, prompt="an event")

    def found() -> dict[str, Any] | None:
        records = read_all(kafka, "analytics.events", 3)
        events = {e["event_id"]: e for r in records if (e := json.loads(r.value))}
        ids = {answer.headers["x-request-id"] for answer in answers.values()}
        return events if ids <= set(events) else None

    events = eventually(found, 30)
    wanted = {
        "memory_set": ("POST", "/api/memory/set", 200, "oscar"),
        "none": ("GET", "/api/memory/get/{key}", 404, "vera"),
        "login_failed": ("POST", "/api/auth/login", 401, None),
    }
    for action, (method, endpoint, status, user) in wanted.items():
        event = events[answers[action].headers["x-request-id"]]
        assert (event["method"], event["endpoint"], event["status"]) == (method, endpoint, status)
        assert event.get("user_name") == user
        assert event["metadata"].get("audit", "none") == action
        assert event["metadata"]["client"] == "127.0.0.1"
        assert event["duration_ms"] > 0
    assert not [e for e in events.values() if e["endpoint"] in {"/health", "/metrics"}]
    assert generated.status_code == 200
    eventually(
        lambda: [
            r
            for r in read_all(kafka, "edge.ai.inference", 3)
            if json.loads(r.value)["prompt_chars"] == len("an event")
        ],
        30,
    )


def test_unknown_routes_and_methods(api: Api) -> None:
    problem(api.ask("GET", "/nothing"), 404, "not_found")
    answer = api.ask("PUT", "/api/memory/set", user="oscar")
    problem(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == "POST"


HARDENING = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
}


def test_every_answer_is_hardened(api: Api) -> None:
    for method, path in (("GET", "/health"), ("GET", "/nothing"), ("POST", "/api/auth/login")):
        headers = api.ask(method, path).headers
        assert {name: headers.get(name) for name in HARDENING} == HARDENING
        assert len(headers["x-request-id"]) == 36
        assert "server" not in headers


def test_the_documentation_needs_no_other_server(api: Api) -> None:
    page = api.ask("GET", "/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert "http" not in page.text
    policy = page.headers["content-security-policy"]
    assert "script-src 'self';" in policy
    assert "http" not in policy
    for path in ("/docs/swagger-ui-bundle.js", "/docs/swagger-ui.css", "/docs/start.js"):
        assert path in page.text
        assert api.ask("GET", path).status_code == 200
    problem(api.ask("GET", "/docs/secrets"), 404, "not_found")
    assert api.ask("GET", "/").headers["location"] == "/docs"


def test_the_document_is_complete(api: Api) -> None:
    """Every route: a summary, what it answers, every error as a Problem, examples."""
    document = api.ask("GET", "/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    routes = {
        (method, path): operation
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    }
    assert len(routes) == 14
    for (method, path), operation in routes.items():
        assert operation["summary"], path
        assert operation["description"], path
        success = operation["responses"]["200"]["content"]
        for content in success.values():
            assert "schema" in content, path
        errors = {s: r for s, r in operation["responses"].items() if s != "200"}
        assert "500" in errors
        for status, response in errors.items():
            content = response["content"]["application/json"]
            assert content["schema"] == {"$ref": "#/components/schemas/Problem"}, (path, status)
            assert content["example"]["detail"]
        if "security" in operation:
            assert {"401", "403", "413", "429"} <= set(errors)
        if method == "post" and path != "/api/auth/logout":
            assert {"400", "413", "422"} <= set(errors), path
    schemas = document["components"]["schemas"]
    assert "HTTPValidationError" not in schemas

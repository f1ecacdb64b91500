"""What the API still does while a server it uses is away, and after it has come back."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis import Redis
from tests.integration.servers import (
    KafkaServer,
    LlamaServer,
    PostgresServer,
    RedisServer,
    llama_server,
    redis_server,
)

from api_support import Api, Servers, create_redis_user, problem, running_api
from prime_spark.api.auth.sessions import REVOKED
from prime_spark.memory.nas import SENTINEL
from support import eventually, read_all


@pytest.fixture(scope="module")
def llamas() -> Iterator[tuple[LlamaServer, LlamaServer]]:
    with llama_server() as edge, llama_server() as cloud:
        yield edge, cloud


@pytest.fixture(scope="module")
def servers(
    redis: RedisServer,
    kafka: KafkaServer,
    postgres: PostgresServer,
    llamas: tuple[LlamaServer, LlamaServer],
    tmp_path_factory: pytest.TempPathFactory,
) -> Servers:
    servers = Servers(redis, kafka, postgres, "api_faults", *llamas)
    servers.prepare(tmp_path_factory.mktemp("prepare"))
    return servers


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("api")


@pytest.fixture(scope="module")
def api(servers: Servers, folder: Path) -> Iterator[Api]:
    publisher = {"max_events": 20}
    with running_api(servers, folder, publisher=publisher) as running:
        for user in ("oscar", "vera"):
            running.token(user)  # while Redis is there
        yield running


@pytest.fixture(autouse=True)
def _well(api: Api) -> None:
    names = ("redis", "kafka", "timescale", "nas", "llm")
    eventually(lambda: all(api.subsystems()[name]["status"] == "ok" for name in names), 60)


def set_value(api: Api, key: str, value: Any, tier: int = 1) -> Any:
    body = {"key": key, "value": value, "tier": tier}
    return api.ask("POST", "/api/memory/set", user="oscar", json=body)


def get_value(api: Api, key: str) -> Any:
    return api.ask("GET", f"/api/memory/get/{key}", user="vera")


def generate(api: Api, prompt: str, **more: Any) -> Any:
    body = {"prompt": prompt, "max_tokens": 4, "use_cache": False, **more}
    return api.ask("POST", "/api/llm/generate", user="oscar", json=body)


def works(api: Api, *tiers: int, key: str) -> None:
    """What does not need the server that is away works."""
    assert api.ask("GET", "/api/auth/me", user="vera").status_code == 200
    for tier in tiers:
        assert set_value(api, f"{key}{tier}", tier, tier).status_code == 200
        found = get_value(api, f"{key}{tier}")
        assert (found.json(), found.headers["x-memory-tier"]) == (tier, str(tier))
    assert generate(api, "hello").status_code == 200
    status = api.daemon.health()
    assert (status["http"], status["status"]) == (200, "degraded")


def reported_down(api: Api, name: str) -> dict[str, Any]:
    def down() -> dict[str, Any] | None:
        subsystem: dict[str, Any] = api.subsystems()[name]
        return subsystem if subsystem["status"] == "down" else None

    return eventually(down, 30, f"{name} is reported down")


def unavailable(answer: Any, what: str) -> str:
    body = problem(answer, 503, "unavailable")
    assert set(body["reasons"]) == {what}
    assert int(answer.headers["retry-after"]) >= 1
    return str(body["reasons"][what])


def test_redis_away(api: Api, redis: RedisServer) -> None:
    refresh = api.login("alice").json()["refresh_token"]
    redis.kill()
    try:
        unavailable(set_value(api, "k", 1), "memory tier 1 (redis)")
        unavailable(get_value(api, "nothing"), "memory tier 1 (redis)")
        unavailable(api.login("oscar"), "redis")
        unavailable(api.refresh(refresh), "redis")
        task = {"task_type": "llm", "payload": {"prompt": "hello"}}
        submitted = api.ask("POST", "/api/tasks/submit", user="oscar", json=task)
        unavailable(submitted, "redis")
        unavailable(api.ask("GET", "/api/tasks/t", user="oscar"), "redis")
        reported_down(api, "redis")
        works(api, 2, 3, key="redis")
        assert generate(api, "hello", use_cache=True).status_code == 200
        subsystems = api.subsystems()
        assert subsystems["agents"]["status"] == "down"
        assert subsystems["kafka"]["status"] == "ok"
    finally:
        redis.start()
        create_redis_user(redis)
    eventually(lambda: set_value(api, "k", 2).status_code == 200, 20)
    assert get_value(api, "k").json() == 2
    assert api.login("oscar").status_code == 200
    assert api.refresh(refresh).status_code == 200


def test_a_logout_that_redis_cannot_keep_is_said_to_have_failed(
    api: Api, redis: RedisServer
) -> None:
    token = api.login("alice").json()["access_token"]
    redis.kill()
    try:
        headers = {"Authorization": f"Bearer {token}"}
        unavailable(api.ask("POST", "/api/auth/logout", headers=headers), "redis")
        assert api.me(token).status_code == 401  # here, at least, it is worth nothing
    finally:
        redis.start()
        create_redis_user(redis)


def test_kafka_away(api: Api, kafka: KafkaServer) -> None:
    dropped = api.subsystems()["kafka"]["dropped"]
    kafka.kill()
    try:
        reported_down(api, "kafka")
        works(api, 1, 2, 3, key="kafka")
        durations = []
        for number in range(60):  # more than the queue of 20 holds
            started = time.perf_counter()
            assert set_value(api, "k", number).status_code == 200
            durations.append(time.perf_counter() - started)
        assert statistics.median(durations) < 2
        state = api.subsystems()["kafka"]
        assert state["queued"] <= 20
        assert state["dropped"] - dropped >= 40
        name = "prime_spark_publisher_dropped_total"
        assert api.daemon.metric(name) >= state["dropped"] - 1
    finally:
        kafka.start()
    wanted = eventually(
        lambda: (
            answer
            if api.subsystems()["kafka"]["status"] == "ok" and (answer := get_value(api, "k"))
            else None
        ),
        60,
    ).headers["x-request-id"]

    def arrived() -> bool:
        records = read_all(kafka, "analytics.events", 3)
        return wanted in {json.loads(record.value)["event_id"] for record in records}

    eventually(arrived, 90, "events flow again")


def test_timescale_away(api: Api, postgres: PostgresServer) -> None:
    assert set_value(api, "kept", 3, tier=3).status_code == 200
    api.ask("DELETE", "/api/memory/none", user="oscar")
    postgres.kill()
    try:
        reported_down(api, "timescale")
        unavailable(set_value(api, "k3", 1, tier=3), "memory tier 3 (postgresql)")
        unavailable(get_value(api, "nothing"), "memory tier 3 (postgresql)")
        works(api, 1, 2, key="timescale")
        assert api.login("vera").status_code == 200
    finally:
        postgres.start()
    eventually(lambda: set_value(api, "k3", 4, tier=3).status_code == 200, 30)
    assert get_value(api, "kept").json() == 3


@contextmanager
def unmounted(folder: Path) -> Iterator[Path]:
    """The mount point without the share: an empty directory, as after umount."""
    share, away = folder / "share", folder / "away"
    share.rename(away)
    share.mkdir()
    try:
        yield share
    finally:
        shutil.rmtree(share)
        away.rename(share)
    assert (share / SENTINEL).exists()


def test_nas_unmounted(api: Api, folder: Path) -> None:
    assert set_value(api, "on-the-nas", 2, tier=2).status_code == 200
    with unmounted(folder) as mount_point:
        unavailable(set_value(api, "k2", 1, tier=2), "memory tier 2 (nas)")
        unavailable(get_value(api, "nothing"), "memory tier 2 (nas)")
        reported_down(api, "nas")
        works(api, 1, 3, key="nas")
        assert list(mount_point.iterdir()) == []
    eventually(lambda: set_value(api, "k2", 1, tier=2).status_code == 200, 20)
    api.ask("DELETE", "/api/memory/copy", user="oscar")
    assert get_value(api, "on-the-nas").json() == 2


def test_edge_model_away(api: Api, llamas: tuple[LlamaServer, LlamaServer]) -> None:
    edge, _ = llamas
    assert generate(api, "hello").json()["source"] == "edge"
    edge.kill()
    try:
        found = generate(api, "hello").json()
        assert (found["source"], found["backend"]) == ("cloud", "cloud")
        streamed = generate(api, "hello", stream=True)
        assert '"source":"cloud"' in streamed.text
        llm = eventually(lambda: s if (s := api.subsystems()["llm"])["status"] != "ok" else None)
        assert llm["status"] == "degraded"
        assert llm["detail"].startswith("edge: ")
    finally:
        edge.start()
    eventually(lambda: generate(api, "hello").json()["source"] == "edge", 30)


def test_both_models_away(api: Api, llamas: tuple[LlamaServer, LlamaServer]) -> None:
    for server in llamas:
        server.kill()
    try:
        for stream in (False, True):
            answer = generate(api, "hello", stream=stream)
            body = problem(answer, 503, "unavailable")
            assert set(body["reasons"]) == {"edge", "cloud"}
            assert all(body["reasons"].values())
        assert reported_down(api, "llm")["backends"]
        eventually(lambda: api.ask("GET", "/api/llm/models", user="vera").status_code == 503, 20)
        assert set_value(api, "k", 1).status_code == 200
        assert api.login("vera").status_code == 200
    finally:
        for server in llamas:
            server.start()
    eventually(lambda: generate(api, "hello").status_code == 200, 30)


def test_the_service_starts_while_everything_is_away(tmp_path: Path) -> None:
    with running_api(Servers(), tmp_path) as api:
        eventually(lambda: api.daemon.health()["status"] == "degraded", 20)
        problem(api.login("alice"), 503, "unavailable")
        assert api.ask("GET", "/openapi.json").status_code == 200
        assert api.daemon.terminate() == 0


def test_stopping_finishes_the_requests_under_way(
    servers: Servers, tmp_path: Path, llamas: tuple[LlamaServer, LlamaServer]
) -> None:
    with running_api(servers, tmp_path) as api:
        token = api.token("oscar")
        body = {"prompt": "Tell me a story", "max_tokens": 200, "stream": True, "use_cache": False}
        headers = {"Authorization": f"Bearer {token}"}
        with api.http.stream("POST", "/api/llm/generate", json=body, headers=headers) as answer:
            lines = answer.iter_lines()
            next(lines)
            assert api.daemon.process is not None
            api.daemon.process.terminate()
            assert "event: done" in list(lines)
        assert api.daemon.process.wait(timeout=30) == 0


@contextmanager
def stopped(*processes: int) -> Iterator[None]:
    """These hang: they take connections and answer nothing."""
    for process in processes:
        os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        for process in processes:
            os.kill(process, signal.SIGCONT)


@pytest.mark.parametrize("stream", [False, True])
def test_what_nobody_waits_for_is_not_generated(
    api: Api, llamas: tuple[LlamaServer, LlamaServer], stream: bool
) -> None:
    def running() -> int:
        return sum(item["running"] for item in api.subsystems()["llm"]["backends"])

    with stopped(*(server.pid for server in llamas)):
        body = json.dumps({"prompt": "hello", "use_cache": False, "stream": stream}).encode()
        head = (
            "POST /api/llm/generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            f"Authorization: Bearer {api.token('oscar')}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        with socket.create_connection(("127.0.0.1", api.daemon.port), timeout=30) as client:
            client.sendall(head.encode() + body)
            eventually(lambda: running() == 1, 30, "it is generated")
        left = time.monotonic()
        eventually(lambda: running() == 0, 30, "nothing is generated any more")
        # Long before the backend's own limit, after which the next one would be asked.
        assert time.monotonic() - left < 30


def test_it_ends_in_time_whatever_hangs(
    servers: Servers, tmp_path: Path, llamas: tuple[LlamaServer, LlamaServer]
) -> None:
    assert servers.redis is not None
    assert servers.kafka is not None
    assert servers.postgres is not None
    with running_api(servers, tmp_path, llm={"cache": None}) as api, ThreadPoolExecutor() as pool:
        api.token("oscar")
        api.token("vera")
        eventually(lambda: api.subsystems()["kafka"]["status"] == "ok", 30)
        set_value(api, "k", 1, 3)  # opens what has to be closed
        others = servers.redis.pid, servers.kafka.pid, servers.postgres.pid
        with stopped(*(server.pid for server in llamas), *others):
            asked = pool.submit(generate, api, "hello")
            eventually(lambda: api.daemon.metric("prime_spark_publisher_queued") > 0)
            assert api.daemon.process is not None
            started = time.monotonic()
            status = api.daemon.terminate()
            took = time.monotonic() - started
        with contextlib.suppress(httpx.HTTPError):
            asked.result(timeout=60)
        said = [line["event"] for line in api.log()]
        assert "did not finish in time, cancelling" not in said, f"{took:.1f} s"
        assert status == 0
        assert took < 30


def test_a_service_that_no_longer_hears_of_revocations_ends(tmp_path: Path) -> None:
    """What is not UTF-8 among the sessions stands for whatever a loop does not expect."""
    with redis_server() as redis:
        servers = Servers(redis=redis)
        servers.prepare(tmp_path)
        with running_api(servers, tmp_path) as api, Redis.from_url(redis.url) as direct:
            direct.zadd(REVOKED, {b"\xff": time.time() + 600})
            assert api.daemon.process is not None
            assert api.daemon.process.wait(timeout=30) == 1


def test_what_came_just_before_the_end_is_recorded(servers: Servers, tmp_path: Path) -> None:
    """Events, an auditor's lines: gathered when the service is told to stop, and not lost."""
    assert servers.kafka is not None
    with running_api(servers, tmp_path) as api:
        api.token("oscar")
        eventually(lambda: api.subsystems()["kafka"]["status"] == "ok", 30)
        answers = [set_value(api, f"last_{number}", number) for number in range(10)]
        assert api.daemon.terminate() == 0
        ids = {answer.headers["x-request-id"] for answer in answers}
        lines = [line for line in api.log() if line.get("audit") == "memory_set"]
        assert ids <= {line["request_id"] for line in lines}
    records = read_all(servers.kafka, "analytics.events", 3)
    assert ids <= {json.loads(record.value)["event_id"] for record in records}

"""The agent as a process: tasks done, once, by those who may ask, and nothing else."""

from __future__ import annotations

import io
import json
import signal
import threading
import time
import urllib.error
import urllib.request
import wave
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from tests.integration.servers import KafkaServer, LlamaServer, RedisServer

from prime_spark.events import Inference, decode
from prime_spark.memory.nas import SENTINEL, NASStorage
from support import (
    Command,
    Daemon,
    eventually,
    free_port,
    kafka_admin,
    kafka_config,
    read_all,
    running,
)

TOKEN = "correct-horse-battery-staple"
WORDS = ["open", "close", "garden", "window", "kitchen", "music", "stop", "start", "yellow", "lamp"]
SENTENCE = "close garden window"


def make_command(folder: Path, redis: RedisServer, llama: LlamaServer) -> Command:
    """An agent whose share is `folder`/nas: a directory that looks mounted."""
    (folder / "nas").mkdir()
    (folder / "nas" / SENTINEL).touch()
    config: dict[str, Any] = {
        "name": f"agent-{free_port()}",
        "http": {"host": "127.0.0.1", "port": free_port()},
        "callers": {"dispatcher": {"credential": "agent_token"}},
        "state": str(folder / "state" / "tasks.sqlite"),
        "nas": {"directory": str(folder / "nas")},
        "redis": {
            "host": redis.host,
            "port": redis.port,
            "username": redis.username,
            "credential": "redis_password",
        },
        "heartbeat": {"interval_seconds": 0.2, "ttl_seconds": 1.5},
        "limits": {"capacity": 2, "queue": 1, "max_request_bytes": 20_000},
        "llm": {
            "cache": None,
            "backends": [
                {"name": "edge", "source": "edge", "url": llama.url, "credential": "llama"}
            ],
        },
    }
    secrets = {"agent_token": TOKEN, "redis_password": redis.password, "llama": llama.api_key}
    return Command("agent", folder, config, secrets)


@contextmanager
def serving(command: Command) -> Iterator[Daemon]:
    with running(command) as daemon:
        eventually(lambda: daemon.get("/health")[0] == 200)
        yield daemon


@pytest.fixture(scope="module")
def shared(
    tmp_path_factory: pytest.TempPathFactory, redis: RedisServer, llama: LlamaServer
) -> Iterator[Daemon]:
    """One agent for the tests that leave it as it was; task ids have to differ."""
    with serving(make_command(tmp_path_factory.mktemp("shared"), redis, llama)) as daemon:
        yield daemon


@pytest.fixture
def command(tmp_path: Path, redis: RedisServer, llama: LlamaServer) -> Command:
    return make_command(tmp_path, redis, llama)


@pytest.fixture
def agent(command: Command) -> Iterator[Daemon]:
    """An agent of the test's own."""
    with serving(command) as daemon:
        yield daemon


def share_of(daemon: Daemon | Command) -> Path:
    command = daemon if isinstance(daemon, Command) else daemon.command
    return Path(command.config["nas"]["directory"])


def fresh(name: str) -> str:
    """A task id that was not used before, in no run: Redis remembers."""
    return f"{name}-{uuid4().hex[:12]}"


def post(
    daemon: Daemon, body: Any, *, token: str | None = TOKEN, timeout: float = 60
) -> tuple[int, dict[str, Any]]:
    """POST /api/execute; return status and answer."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{daemon.port}/api/execute", data)
    request.add_header("Content-Type", "application/json")
    if token is not None:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read() or b"{}")


def task(name: str, task_type: str, payload: Any, **more: Any) -> dict[str, Any]:
    """A request for a new task; its id begins with `name`."""
    given = {"task_id": fresh(name), "task_type": task_type, "payload": payload}
    return {**given, "priority": "NORMAL", **more}


def speak(name: str = "speak", text: str = SENTENCE, **more: Any) -> dict[str, Any]:
    return task(name, "voice_synthesis", {"text": text, **more})


def execute(daemon: Daemon, body: dict[str, Any]) -> dict[str, Any]:
    status, answer = post(daemon, body)
    assert status == 200, answer
    return answer


# -- what it does ---------------------------------------------------------------------------------


def test_what_is_spoken_is_recognized(shared: Daemon) -> None:
    """Text to a WAV file on the NAS, and the WAV file back to its words."""
    body = speak()
    spoken = execute(shared, body)
    assert (spoken["status"], spoken["task_id"]) == ("completed", body["task_id"])
    result = spoken["result"]
    assert result["artifact"] == f"artifacts/voice/task-{body['task_id']}.wav"
    assert result["engine"] == "espeak-ng"
    data = NASStorage(share_of(shared)).retrieve(result["artifact"])
    assert isinstance(data, bytes)
    with wave.open(io.BytesIO(data)) as file:
        assert file.getnframes() / file.getframerate() == pytest.approx(result["seconds"], abs=0.01)
        assert result["seconds"] > 1
    assert len(data) == result["bytes"]

    payload = {"audio_key": result["artifact"], "words": WORDS}
    heard = execute(shared, task("hear", "voice_recognition", payload))
    assert heard["status"] == "completed", heard
    assert heard["result"]["words"] == SENTENCE.split()
    assert heard["result"]["engine"] == "pocketsphinx"

    grammar = (
        "#JSGF V1.0; grammar g; public <c> = (open | close) (garden | kitchen) (window | lamp);"
    )
    payload = {"audio_key": result["artifact"], "grammar": grammar}
    heard = execute(shared, task("hear", "voice_recognition", payload))
    assert heard["result"]["text"] == SENTENCE


def test_shell_metacharacters_are_spoken_not_executed(shared: Daemon, tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    text = f"close `touch {trap}` garden $(touch {trap}); touch {trap} | touch {trap} && window"
    answer = execute(shared, speak("shell", f"{text} > {trap} '\"\\ -w {trap}"))
    assert answer["status"] == "completed"
    assert not trap.exists()
    spoken = execute(shared, speak("plain"))
    # The characters are pronounced: the sentence is far longer than its words alone.
    assert answer["result"]["seconds"] > 3 * spoken["result"]["seconds"]
    option = execute(shared, speak("option", f"--stdout -w {trap}"))
    assert option["status"] == "completed"
    assert not trap.exists()


def test_voice_and_speed_matter(shared: Daemon) -> None:
    slow = execute(shared, speak("slow", speed=80))["result"]["seconds"]
    fast = execute(shared, speak("fast", speed=300))["result"]["seconds"]
    assert fast < slow * 0.6
    answer = execute(shared, speak("nobody", voice="xx-nobody"))
    assert (answer["status"], answer["retryable"]) == ("failed", False)
    assert "voice does not exist" in answer["error"]


def test_the_language_model_answers(shared: Daemon, llama: LlamaServer) -> None:
    payload = {"prompt": "hello", "max_tokens": 5}
    result = execute(shared, task("llm", "llm", payload))["result"]
    assert (result["source"], result["model"], result["output_tokens"]) == ("edge", llama.model, 5)
    refused = execute(shared, task("llm", "llm", {"prompt": "x" * 9000}))
    assert (refused["status"], refused["retryable"]) == ("failed", False)
    body = task("llm", "llm", payload)
    llama.kill()
    try:
        down = execute(shared, body)
        assert (down["status"], down.get("retryable", True)) == ("failed", True)
        assert "edge: cannot connect" in down["error"]
    finally:
        llama.start()
    # It failed in a way that may pass, so the same task is tried again.
    assert execute(shared, body)["status"] == "completed"


def test_inferences_become_events(command: Command, kafka: KafkaServer, tmp_path: Path) -> None:
    topic = f"inference-{free_port()}"
    acl = {
        "principal": "User:agent",
        "resource_type": "TOPIC",
        "name": topic,
        "operations": ["WRITE", "DESCRIBE"],
    }
    admin = kafka_admin(
        kafka,
        tmp_path / "admin",
        topics={topic: {"partitions": 1}},
        users={"agent": "agent-password"},
        acls=[acl],
    )
    admin.folder.mkdir()
    admin.run()
    command.config["kafka"] = kafka_config(kafka, "agent")
    command.config["publisher"] = {"inference_topic": topic}
    command.credentials = {**command.credentials, "kafka_password": "agent-password"}
    with serving(command) as daemon:
        execute(daemon, task("event", "llm", {"prompt": "hello", "max_tokens": 5}))
        (record,) = eventually(lambda: read_all(kafka, topic, 1))
    event = decode(record.value, Inference)
    assert (event.source, event.output_tokens, event.metadata["backend"]) == ("edge", 5, "edge")


# -- what it refuses ------------------------------------------------------------------------------


@pytest.mark.parametrize("token", [None, "", "wrong", TOKEN + "x", TOKEN[:-1]])
def test_nothing_without_the_token(shared: Daemon, token: str | None) -> None:
    body = speak("stranger")
    status, answer = post(shared, body, token=token)
    assert status == 401
    assert "artifact" not in json.dumps(answer)
    assert not list(share_of(shared).rglob(f"*{body['task_id']}*"))
    assert post(shared, b"x" * 100_000, token=token)[0] == 401


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"no json", 422),
        (b"[]", 422),
        ({**speak(), "task_id": "../../etc/passwd"}, 422),
        ({**speak(), "task_id": ""}, 422),
        ({**speak(), "task_type": "shell"}, 422),
        ({**speak(), "priority": "MAX"}, 422),
        ({**speak(), "payload": "text"}, 422),
        (speak(text="x" * 30_000), 413),
    ],
)
def test_requests_that_are_refused(shared: Daemon, body: Any, status: int) -> None:
    assert post(shared, body)[0] == status


@pytest.mark.parametrize(
    ("task_type", "payload", "reason"),
    [
        ("voice_synthesis", {"text": ""}, "payload.text"),
        ("voice_recognition", {"audio_key": "artifacts/none.wav"}, "no object"),
        ("voice_recognition", {"audio_key": "artifacts/../../secret"}, "not allowed"),
        ("voice_recognition", {"audio_url": "file:///etc/passwd"}, "scheme 'file'"),
        ("voice_recognition", {"audio_url": "https://127.0.0.1/a.wav"}, "not one of those allowed"),
        ("llm", {"prompt": "x", "temperature": -1}, "payload.temperature"),
    ],
)
def test_payloads_that_fail_for_good(
    shared: Daemon, task_type: str, payload: dict[str, Any], reason: str
) -> None:
    answer = execute(shared, task("bad", task_type, payload))
    assert (answer["status"], answer["retryable"]) == ("failed", False)
    assert reason in answer["error"]


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        ({"engine": "vosk"}, "the engine vosk is not installed: its Python package 'vosk'"),
        ({"engine": "faster-whisper"}, "package 'faster_whisper' is missing"),
        ({"words": ["open", "xyzzyqq"]}, "not in the dictionary: xyzzyqq"),
        ({"grammar": "public nonsense"}, "grammar: not usable"),
    ],
)
def test_recognition_that_cannot_be_done(
    shared: Daemon, payload: dict[str, Any], reason: str
) -> None:
    spoken = execute(shared, speak())
    given = {"audio_key": spoken["result"]["artifact"], **payload}
    answer = execute(shared, task("hear", "voice_recognition", given))
    assert answer["status"] == "failed"
    assert reason in answer["error"]
    assert answer.get("unable", False) == ("engine" in payload), "another agent may have it"


def test_synthesis_that_cannot_be_done(shared: Daemon) -> None:
    answer = execute(shared, speak("piper", engine="piper"))
    assert "the engine piper is not set up" in answer["error"]
    assert answer["unable"]


@pytest.mark.parametrize("content", [b"", b"RIFF not audio", b"{}" * 5000])
def test_audio_that_is_none(shared: Daemon, content: bytes) -> None:
    NASStorage(share_of(shared)).store("artifacts/odd.wav", content)
    payload = {"audio_key": "artifacts/odd.wav", "words": WORDS}
    answer = execute(shared, task("odd", "voice_recognition", payload))
    assert "not a PCM WAV file" in answer["error"]
    assert answer["retryable"] is False


@contextmanager
def web_server(body: bytes) -> Iterator[int]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/away":
                self.send_response(302)
                self.send_header("Location", f"http://127.0.0.2:{self.server.server_port}/a.wav")  # type: ignore[attr-defined]
                self.end_headers()
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()


def test_audio_from_a_url(shared: Daemon, command: Command) -> None:
    spoken = execute(shared, speak())
    data = NASStorage(share_of(shared)).retrieve(spoken["result"]["artifact"])
    assert isinstance(data, bytes)
    with web_server(data) as port:
        command.config["audio"] = {
            "schemes": ["http"],
            "hosts": [f"127.0.0.1:{port}", f"127.0.0.2:{port}"],
            "private_networks": ["127.0.0.1/32"],
            "max_bytes": len(data),
        }

        def hear(daemon: Daemon, path: str) -> dict[str, Any]:
            payload = {"audio_url": f"http://127.0.0.1:{port}{path}", "words": WORDS}
            return execute(daemon, task("url", "voice_recognition", payload))

        with serving(command) as daemon:
            assert hear(daemon, "/a.wav")["result"]["text"] == SENTENCE
            assert "127.0.0.2 is a loopback address" in hear(daemon, "/away")["error"]
        command.config["audio"]["max_bytes"] -= 1
        with serving(command) as daemon:
            assert "more than the" in hear(daemon, "/a.wav")["error"]


# -- each task once -------------------------------------------------------------------------------


def test_a_completed_task_is_not_done_again(agent: Daemon) -> None:
    body = speak()
    first = execute(agent, body)
    artifact = share_of(agent) / first["result"]["artifact"]
    written = artifact.stat().st_mtime_ns
    assert execute(agent, {**body, "attempt": 2, "priority": "LOW"}) == first
    # Not after a restart either, and not by another agent: Redis knows it.
    agent.kill()
    agent.start()
    eventually(lambda: agent.get("/health")[0] == 200)
    assert execute(agent, body) == first
    Path(agent.command.config["state"]).unlink()
    agent.kill()
    agent.start()
    eventually(lambda: agent.get("/health")[0] == 200)
    assert execute(agent, body) == first
    assert artifact.stat().st_mtime_ns == written
    assert agent.metric("prime_spark_agent_tasks_total") == 1  # the repeated one


def test_an_answer_is_kept_without_redis(command: Command) -> None:
    del command.config["redis"]
    with serving(command) as daemon:
        body = speak()
        first = execute(daemon, body)
        daemon.kill()
        daemon.start()
        eventually(lambda: daemon.get("/health")[0] == 200)
        NASStorage(share_of(daemon)).delete(first["result"]["artifact"])
        assert execute(daemon, body) == first
        assert not (share_of(daemon) / first["result"]["artifact"]).exists()


def test_the_same_id_with_another_content_is_a_conflict(shared: Daemon) -> None:
    body = speak()
    execute(shared, body)
    status, answer = post(shared, {**body, "payload": {"text": "something else"}})
    assert status == 409
    assert "another content" in answer["detail"]


def test_the_same_task_asked_twice_at_once_is_done_once(agent: Daemon, llama: LlamaServer) -> None:
    body = task("join", "llm", {"prompt": "hello", "max_tokens": 300})
    with ThreadPoolExecutor() as pool:
        answers = [
            future.result() for future in [pool.submit(execute, agent, body) for _ in range(4)]
        ]
    assert all(answer == answers[0] for answer in answers)
    assert agent.metric("prime_spark_llm_attempts_total") == 1


@contextmanager
def held(daemon: Daemon, llama: LlamaServer, count: int) -> Iterator[list[Future[Any]]]:
    """`count` tasks that do not end before the context does."""
    with ThreadPoolExecutor() as pool:
        llama.pause()
        try:
            payload = {"prompt": "hello", "max_tokens": 3}
            futures = [
                pool.submit(post, daemon, task("held", "llm", payload)) for number in range(count)
            ]
            eventually(
                lambda: daemon.metric("prime_spark_agent_tasks_running") >= min(count, 3),
                what="tasks under way",
            )
            yield futures
        finally:
            llama.resume()


def test_a_task_does_not_end_with_its_connection(agent: Daemon, llama: LlamaServer) -> None:
    body = task("left", "llm", {"prompt": "hello", "max_tokens": 3})
    llama.pause()
    try:
        with pytest.raises(TimeoutError):
            post(agent, body, timeout=0.5)
        assert agent.metric("prime_spark_agent_tasks_running") == 1
    finally:
        llama.resume()
    assert execute(agent, body)["status"] == "completed"
    assert agent.metric("prime_spark_llm_attempts_total") == 1


def test_more_than_it_can_take_is_sent_away(agent: Daemon, llama: LlamaServer) -> None:
    with held(agent, llama, 3) as futures:
        body = speak()
        status, answer = post(agent, body)
        assert status == 503
        assert "3 tasks are under way or waiting" in answer["detail"]
    assert [future.result()[1]["status"] for future in futures] == ["completed"] * 3
    assert execute(agent, body)["status"] == "completed"


def test_a_task_ends_at_its_deadline(shared: Daemon, llama: LlamaServer) -> None:
    llama.pause()
    try:
        body = task("late", "llm", {"prompt": "hello"}, timeout_seconds=0.5)
        answer = execute(shared, body)
    finally:
        llama.resume()
    assert (answer["status"], answer["error"]) == ("failed", "not done within 0.5 s")
    assert answer.get("retryable", True)


def test_a_program_that_takes_too_long_is_killed(command: Command, tmp_path: Path) -> None:
    program = tmp_path / "slow-espeak"
    program.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 600\n")
    program.chmod(0o755)
    command.config["synthesis"] = {"seconds": 0.5, "espeak_executable": str(program)}
    with serving(command) as daemon:
        answer = execute(daemon, speak())
        assert "slow-espeak took longer than 0.5 s" in answer["error"]
        assert not Path("/proc", (tmp_path / "pid").read_text().strip()).exists()


# -- when something is away -----------------------------------------------------------------------


def test_nothing_is_written_beneath_an_unmounted_share(shared: Daemon) -> None:
    share, body = share_of(shared), speak()
    before = sorted(share.rglob("*"))
    (share / SENTINEL).unlink()
    answer = execute(shared, body)
    assert (answer["status"], answer.get("retryable", True)) == ("failed", True)
    assert "NAS: " in answer["error"]
    assert "not mounted?" in answer["error"]
    assert sorted(share.rglob("*")) == [path for path in before if path.name != SENTINEL]
    (share / SENTINEL).touch()
    assert execute(shared, body)["status"] == "completed"


def test_health_names_what_is_missing(command: Command) -> None:
    (share_of(command) / SENTINEL).unlink()
    command.config["synthesis"] = {"espeak_executable": "/nowhere/espeak-ng"}
    with running(command) as daemon:
        eventually(lambda: daemon.health().get("components", {}).get("llm", {}).get("ok"))
        health = daemon.health()
        assert (health["http"], health["status"]) == (200, "degraded")
        assert "not mounted?" in health["components"]["nas"]["detail"]
        assert "install the package espeak-ng" in health["components"]["synthesis"]["detail"]
        answer = execute(daemon, speak())
        assert answer["status"] == "failed"


def test_tasks_end_when_redis_has_not_heard_of_the_agent(
    agent: Daemon, llama: LlamaServer, redis: RedisServer
) -> None:
    """Others may have been given them by then."""
    with held(agent, llama, 1) as (future,):
        eventually(lambda: agent.health()["components"]["redis"]["ok"] or "waiting", 1)
        redis.kill()
        try:
            status, answer = future.result(timeout=20)
        finally:
            redis.start()
    assert status == 200
    assert "lost touch" in answer["error"]
    assert answer.get("retryable", True)


# -- its end --------------------------------------------------------------------------------------


def test_sigterm_lets_tasks_end(agent: Daemon, llama: LlamaServer) -> None:
    with held(agent, llama, 1) as (future,):
        assert agent.process is not None
        agent.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)  # it is told while the task runs
        assert agent.process.poll() is None
    assert future.result()[1]["status"] == "completed"
    assert agent.process.wait(timeout=15) == 0


def test_sigterm_does_not_wait_for_ever(command: Command, llama: LlamaServer) -> None:
    command.config["limits"]["drain_seconds"] = 0.5
    with serving(command) as daemon:
        with held(daemon, llama, 1) as (future,):
            started = time.monotonic()
            assert daemon.terminate() == 0
            assert time.monotonic() - started < 30
            status, answer = future.result()
            assert (status, answer["error"]) == (200, "the agent is stopping")
        daemon.start()
        eventually(lambda: daemon.get("/health")[0] == 200)
        body = task("again", "llm", {"prompt": "hello", "max_tokens": 3})
        body["task_id"] = answer["task_id"]
        assert execute(daemon, body)["status"] == "completed"


def test_configuration_errors_are_named(command: Command) -> None:
    command.config["audio"] = {"hosts": ["https://x"]}
    assert "hosts" in command.run("--check-config", expect=2).stderr
    command.config["audio"] = {"max_byte": 1}
    assert "did you mean `max_bytes`" in command.run("--check-config", expect=2).stderr

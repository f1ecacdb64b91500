"""The command `prime-spark` against a running API."""

from __future__ import annotations

import json
import os
import pty
import select
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from tests.integration.servers import LlamaServer, PostgresServer, RedisServer

from api_support import PASSWORD, Api, Servers, running_api
from prime_spark.memory.nas import NASStorage
from prime_spark.tasks import scripts
from support import eventually, inherited

PROGRAM = str(Path(sys.executable).with_name("prime-spark"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("api")


@pytest.fixture(scope="module")
def api(
    redis: RedisServer, postgres: PostgresServer, llama: LlamaServer, folder: Path
) -> Iterator[Api]:
    servers = Servers(redis, None, postgres, "api_cli", edge=llama, cloud=llama)
    servers.prepare(folder)
    with running_api(servers, folder, auth={"access_seconds": 60}) as running:
        yield running


@dataclass
class Terminal:
    """Somebody at a terminal, with a home of their own."""

    home: Path
    url: str

    def environment(self) -> dict[str, str]:
        return {
            "HOME": str(self.home),
            **inherited(),
            "PRIME_SPARK_URL": self.url,
            "LANG": "C.UTF-8",
            "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1",
        }

    def run(
        self, *arguments: str, status: int = 0, given: str | bytes = b""
    ) -> subprocess.CompletedProcess[bytes]:
        done = subprocess.run(
            [PROGRAM, *arguments],
            env=self.environment(),
            cwd=self.home,
            input=given.encode() if isinstance(given, str) else given,
            capture_output=True,
            timeout=60,
            check=False,
        )
        said = (done.stdout + done.stderr).decode(errors="replace")
        assert done.returncode == status, f"exit {done.returncode}\n{said}"
        assert "Traceback" not in said
        return done

    def says(self, *arguments: str, **more: Any) -> str:
        return self.run(*arguments, **more).stdout.decode()

    def complains(self, *arguments: str, status: int, **more: Any) -> list[str]:
        done = self.run(*arguments, status=status, **more)
        return done.stderr.decode().splitlines()

    def answers(self, *arguments: str, **more: Any) -> Any:
        return json.loads(self.says("--json", *arguments, **more))

    def login(self, user: str = "oscar") -> None:
        self.run("login", user, "--password-stdin", given=PASSWORD + "\n")

    @property
    def tokens(self) -> Path:
        return self.home / ".local/state/prime-spark/tokens.json"


@pytest.fixture
def terminal(api: Api, tmp_path: Path) -> Terminal:
    return Terminal(tmp_path, api.url)


def test_log_in_and_out(terminal: Terminal) -> None:
    said = terminal.says("login", "oscar", "--password-stdin", given=PASSWORD + "\n")
    assert said == f"Logged in to {terminal.url} as oscar (operator).\n"
    assert stat.S_IMODE(terminal.tokens.stat().st_mode) == 0o600
    assert stat.S_IMODE(terminal.tokens.parent.stat().st_mode) == 0o700
    assert PASSWORD not in terminal.tokens.read_text()
    assert terminal.says("whoami") == f"oscar (operator) on {terminal.url}\n"
    assert terminal.answers("whoami")["role"] == "operator"
    kept = terminal.tokens.read_text()
    assert terminal.says("logout") == "Logged out.\n"
    assert not terminal.tokens.exists()
    assert terminal.says("logout") == "There was no session to end.\n"
    # The session has ended on the server too.
    terminal.tokens.write_text(kept)
    terminal.tokens.chmod(0o600)
    assert terminal.complains("whoami", status=3)[0] == "error: Your session has ended."


def test_a_password_is_asked_for_without_showing_it(terminal: Terminal) -> None:
    # Not pty.fork: a copy of this process, which has threads, may hang before it becomes another.
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [PROGRAM, "login"],
        env=terminal.environment(),
        cwd=terminal.home,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    seen = b""

    def read_until(text: bytes) -> None:
        nonlocal seen
        deadline = time.monotonic() + 30
        while text not in seen:
            assert time.monotonic() < deadline, seen
            if select.select([ours], [], [], 0.1)[0]:
                seen += os.read(ours, 1000)

    try:
        read_until(b"Name")
        os.write(ours, b"vera\n")
        read_until(b"Password")
        os.write(ours, PASSWORD.encode() + b"\n")
        read_until(b"as vera (viewer)")
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    assert PASSWORD.encode() not in seen


def test_wrong_password_and_no_login(terminal: Terminal) -> None:
    wrong = terminal.complains("login", "oscar", "--password-stdin", given="no\n", status=3)
    assert wrong == ["error: The name or the password is wrong."]
    for command in (["whoami"], ["health"], ["memory", "get", "k"], ["generate", "hi"]):
        said = terminal.complains(*command, status=3)
        assert said == ["error: You are not logged in.", "Run `prime-spark login`."]
    failed = json.loads(terminal.run("--json", "whoami", status=3).stdout)
    assert failed["error"]["code"] == "not_logged_in"
    nobody_to_ask = [
        "error: There is no terminal to ask on.",
        "Give a name and --password-stdin.",
    ]
    assert terminal.complains("login", "oscar", status=2) == nobody_to_ask
    assert terminal.complains("login", status=2) == nobody_to_ask
    assert terminal.complains("login", "--password-stdin", status=2, given="x\n") == nobody_to_ask


def test_tokens_that_others_may_read_are_not_used(terminal: Terminal) -> None:
    terminal.login()
    terminal.tokens.chmod(0o644)
    said = terminal.complains("whoami", status=1)
    assert "can be read by others (mode 0644)" in said[0]


def test_tokens_do_not_go_to_another_api(terminal: Terminal) -> None:
    terminal.login()
    said = terminal.complains("--url", "http://127.0.0.1:9", "whoami", status=3)
    assert said[0] == "error: You are not logged in."


def test_an_access_token_is_renewed_by_itself_and_only_once(terminal: Terminal) -> None:
    terminal.login()
    tokens = json.loads(terminal.tokens.read_text())
    terminal.tokens.write_text(json.dumps({**tokens, "expires": 0}))
    # Several at once: one renews, and none uses a refresh token a second time.
    with ThreadPoolExecutor(4) as pool:
        assert len(list(pool.map(lambda _: terminal.says("whoami"), range(4)))) == 4
    renewed = json.loads(terminal.tokens.read_text())
    assert renewed["refresh_token"] != tokens["refresh_token"]
    # And one that the server no longer takes, whatever its time.
    terminal.tokens.write_text(json.dumps({**renewed, "access_token": "stale"}))
    assert terminal.says("whoami").startswith("oscar")


def test_health(terminal: Terminal) -> None:
    terminal.login("vera")
    said = terminal.says("health", status=1)  # there is no Kafka here, for one
    assert said.splitlines()[0].split() == ["SUBSYSTEM", "STATUS", "DETAIL"]
    states = {line.split()[0]: line.split()[1] for line in said.splitlines()[1:]}
    assert (states["redis"], states["nas"], states["kafka"]) == ("ok", "ok", "down")
    found = terminal.answers("health", status=1)
    assert set(found["subsystems"]) == set(states)
    # The option may come after the command as well; what comes after -- is no option.
    assert json.loads(terminal.says("health", "--json", status=1))["subsystems"]
    refused = json.loads(terminal.says("memory", "get", "k", "--json", status=4))
    assert refused["error"]["code"] == "not_found"
    assert terminal.complains("memory", "get", "--", "--json", status=2)[0].startswith("error: ")


def test_vpn(terminal: Terminal, api: Api, folder: Path) -> None:
    terminal.login("vera")
    peer = {
        "name": "primecore1",
        "vpn_address": "10.0.0.11",
        "endpoint": "192.0.2.1:51820",
        "latest_handshake": int(time.time()) - 30,
        "rx_bytes": 1_500_000,
        "tx_bytes": 900,
    }
    status = {"time": time.time(), "interface": "wg0", "peers": [peer]}
    (folder / "vpn.json").write_text(json.dumps(status))
    # The API asks at most every two seconds: what it knew before stands until then.
    eventually(lambda: api.subsystems()["vpn"]["peers"])
    assert b"primecore1" in terminal.run("--json", "vpn").stdout
    lines = terminal.says("vpn").splitlines()
    assert lines[1].split() == [
        *("primecore1", "10.0.0.11", "192.0.2.1:51820"),
        *(lines[1].split()[3], "s", "ago", "2", "MB", "900", "B", "ok"),
    ]


def test_memory(terminal: Terminal, folder: Path) -> None:
    terminal.login()
    assert terminal.says("memory", "set", "cli:json", '{"a": 1}') == "Kept cli:json in tier 1.\n"
    assert json.loads(terminal.says("memory", "get", "cli:json")) == {"a": 1}
    terminal.run("memory", "set", "cli:text", "good morning", "--ttl", "60")
    assert terminal.says("memory", "get", "cli:text") == "good morning\n"
    data = bytes(range(256))
    terminal.run("memory", "set", "cli:bytes", "--file", "-", "--tier", "2", given=data)
    assert terminal.run("memory", "get", "cli:bytes").stdout == data
    terminal.run("memory", "get", "cli:bytes", "-o", "out.bin")
    assert (terminal.home / "out.bin").read_bytes() == data
    found = terminal.answers("memory", "get", "cli:bytes")
    assert found["key"] == "cli:bytes"
    assert found["value_base64"]
    assert terminal.says("memory", "delete", "cli:json") == "Deleted cli:json from tier 1.\n"
    missing = terminal.complains("memory", "get", "cli:json", status=4)
    assert missing == ["error: there is nothing under the key cli:json"]
    for command in (("set", "a/b", "1"), ("get", "a b"), ("delete", ".a")):
        (said, *_) = terminal.complains("memory", *command, status=2)
        assert "a key is 1 to 128 letters, digits" in said
        assert "pattern" not in said
    assert terminal.complains("memory", "set", "k", status=2)
    (folder / "share").rename(folder / "away")
    down = terminal.complains("memory", "set", "k", "1", "--tier", "2", status=5)
    (folder / "away").rename(folder / "share")
    assert "tier 2" in down[0]
    assert down[1] == "See `prime-spark health` for what is down."
    terminal.login("vera")
    refused = terminal.complains("memory", "set", "k", "1", status=3)
    assert refused[0] == "error: needs the role operator, yours is viewer"


def test_generate_appears_as_it_is_made(terminal: Terminal, llama: LlamaServer) -> None:
    terminal.login()
    options = ("--max-tokens", "12", "--seed", "1", "--no-cache")
    done = terminal.run("generate", "Tell me a story", *options)
    assert done.stdout.strip()
    assert f"[{llama.model}, edge: edge, " in done.stderr.decode()
    found = terminal.answers("generate", "-", *options, given="Tell me a story")
    assert (found["source"], found["model"]) == ("edge", llama.model)
    assert terminal.says("models").split()[2] == llama.model
    rejected = terminal.complains("generate", "hi", "--model", "nothing", status=4)
    assert "nothing" in rejected[0]


def test_tasks(terminal: Terminal, redis: RedisServer, folder: Path) -> None:
    terminal.login()
    task_id = terminal.says("tasks", "submit", "voice_synthesis", "go forward").strip()
    task = terminal.answers("tasks", "status", task_id)
    assert (task["status"], task["owner"]) == ("PENDING", "oscar")
    waiting = terminal.complains(
        "tasks", "status", task_id, "--wait", "--wait-seconds", "1", status=5
    )
    assert "still PENDING after 1 s" in waiting[0]
    key = f"artifacts/voice/task-{task_id}.wav"
    NASStorage(folder / "share").store(key, b"RIFF")
    with Redis.from_url(redis.url) as administrator:
        administrator.hset(
            scripts.TASK + task_id,
            mapping={"state": "COMPLETED", "result": json.dumps({"artifact": key})},
        )
    assert "COMPLETED" in terminal.says("tasks", "status", task_id)
    assert terminal.says("tasks", "artifact", task_id) == f"Wrote 4 bytes to task-{task_id}.wav.\n"
    assert (terminal.home / f"task-{task_id}.wav").read_bytes() == b"RIFF"
    with Redis.from_url(redis.url) as administrator:
        fields = {"state": "FAILED", "error": "no such voice"}
        administrator.hset(scripts.TASK + task_id, mapping=fields)
    assert "no such voice" in terminal.says("tasks", "status", task_id, status=1)
    assert terminal.complains("tasks", "status", "nothing", status=4)
    assert terminal.complains("tasks", "submit", "voice_recognition", "text", status=2)
    for payload in ("text", '{"text": "hello"}'):
        assert terminal.complains("tasks", "submit", "voice_sythesis", payload, status=2) == [
            "error: There is no task type voice_sythesis.",
            "It is one of voice_recognition, voice_synthesis, llm.",
        ]
    (said, *_) = terminal.complains("tasks", "submit", "llm", "x", "--task-id", "a b", status=2)
    assert "an id is 1 to 64 letters, digits" in said


def test_an_api_that_is_not_there(terminal: Terminal, tmp_path: Path) -> None:
    terminal.url = "http://127.0.0.1:9"
    said = terminal.complains("login", "oscar", "--password-stdin", given="x\n", status=5)
    assert said[0].startswith("error: http://127.0.0.1:9 cannot be reached")
    assert "Is the VPN up" in said[1]
    terminal.url = "nonsense"
    assert terminal.complains("login", "a", "--password-stdin", given="x\n", status=2)
    terminal.url = ""
    assert terminal.complains("whoami", status=2)[0] == "error: No API is known."


def test_help_and_completion(terminal: Terminal) -> None:
    said = terminal.says("--help")
    for command in ("login", "logout", "whoami", "health", "generate", "memory", "tasks", "vpn"):
        assert command in said
    for shell in ("bash", "zsh", "fish"):
        assert "prime-spark" in terminal.says("--show-completion", shell)
    assert terminal.says("--version").startswith("prime-spark 0.")

"""What the service tests share: processes of our commands, waiting, and looking into servers."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import asyncpg
import psutil
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from tests.integration.servers import KafkaServer, PostgresServer

T = TypeVar("T")

_END_SECONDS = 10.0


def eventually(probe: Callable[[], T | None], seconds: float = 30.0, what: str = "") -> T:
    """Return the first truthy value of `probe`; fail with its last value after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        value = probe()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"{what or probe.__name__}: still {value!r} after {seconds:g} s")
        time.sleep(0.05)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def inherited() -> dict[str, str]:
    """What a process of ours takes from the environment of the tests, and nothing else."""
    return {
        key: value
        for key, value in os.environ.items()
        if key in {"PATH", "PYTHONPATH"} or key.startswith("COVERAGE_")
    }


@dataclass
class Command:
    """One of our console scripts with a configuration file and a credentials directory."""

    name: str
    folder: Path
    config: dict[str, Any]
    credentials: Mapping[str, str] = field(default_factory=dict)

    def arguments(self) -> list[str]:
        (self.folder / "credentials").mkdir(exist_ok=True, parents=True)
        for name, secret in self.credentials.items():
            (self.folder / "credentials" / name).write_text(secret + "\n")
        path = self.folder / f"{self.name}.json"
        path.write_text(json.dumps(self.config))
        script = Path(sys.executable).with_name(f"prime-spark-{self.name}")
        return [str(script), "--config", str(path)]

    def environment(self) -> dict[str, str]:
        return {**inherited(), "CREDENTIALS_DIRECTORY": str(self.folder / "credentials")}

    def run(
        self, *arguments: str, expect: int = 0, stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run to the end and return what it printed."""
        done = subprocess.run(
            [*self.arguments(), *arguments],
            env=self.environment(),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        assert done.returncode == expect, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def answer(self, *arguments: str, stdin: str = "") -> dict[str, Any]:
        """Run to the end and return the one JSON object it printed."""
        lines = self.run(*arguments, stdin=stdin).stdout.splitlines()
        assert len(lines) == 1, lines
        answer: dict[str, Any] = json.loads(lines[0])
        return answer


class Daemon:
    """A running service."""

    def __init__(self, command: Command) -> None:
        self.command = command
        self.log = command.folder / f"{command.name}.log"
        self.port: int = command.config["http"]["port"]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command.arguments(),
                env=self.command.environment(),
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def kill(self) -> None:
        """kill -9, and wait until it is gone."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def terminate(self) -> int:
        """SIGTERM; return the exit status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=30)

    def end(self) -> None:
        """As systemd ends a service: SIGTERM, then SIGKILL for one that does not heed it."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(timeout=_END_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()

    def cpu_seconds(self) -> float:
        """Return the processor time that the process has used."""
        assert self.process is not None
        used = psutil.Process(self.process.pid).cpu_times()
        return float(used.user + used.system)

    def get(self, path: str) -> tuple[int, str]:
        """Return status and body of a GET; (0, '') while nobody listens."""
        try:
            with urllib.request.urlopen(
                f"http://127.0.0.1:{self.port}{path}", timeout=30
            ) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def health(self) -> dict[str, Any]:
        """Return /health as a dict, with its HTTP status as `http`; {} while nobody listens."""
        status, body = self.get("/health")
        return {**json.loads(body), "http": status} if status else {}

    def healthy(self) -> bool:
        return self.health().get("status") == "ok"

    def metric(self, name: str) -> float:
        """Return the sum of a metric over its labels."""
        return sum(
            float(line.rsplit(" ", 1)[1])
            for line in self.get("/metrics")[1].splitlines()
            if line.startswith((f"{name} ", f"{name}{{"))
        )


@contextmanager
def running(command: Command) -> Iterator[Daemon]:
    """Start a service, and show its log when the test fails."""
    daemon = Daemon(command)
    daemon.start()
    try:
        yield daemon
    except BaseException:
        sys.stdout.write(daemon.log.read_text()[-20_000:])
        raise
    finally:
        daemon.end()


# -- PostgreSQL ---------------------------------------------------------------------------------


def sql(
    server: PostgresServer,
    database: str,
    query: str,
    *arguments: object,
    settings: Mapping[str, str] | None = None,
) -> list[Any]:
    """Run one statement as the superuser, with a session's settings."""

    async def go() -> list[Any]:
        connection = await asyncpg.connect(
            host=server.host,
            port=server.port,
            user=server.username,
            password=server.password,
            database=database,
            server_settings=dict(settings or {}),
            timeout=30,
        )
        try:
            rows: list[Any] = await connection.fetch(query, *arguments)
            return rows
        finally:
            await connection.close()

    return asyncio.run(go())


def create_database(server: PostgresServer, name: str) -> None:
    sql(server, server.database, f"CREATE DATABASE {name}")


def create_role(server: PostgresServer, name: str, password: str) -> None:
    """Create a role, or give the one that another test has created this password."""
    exists = sql(server, server.database, "SELECT 1 FROM pg_roles WHERE rolname = $1", name)
    verb = "ALTER" if exists else "CREATE"
    sql(server, server.database, f"{verb} ROLE {name} LOGIN PASSWORD '{password}'")


def database_config(server: PostgresServer, database: str, username: str) -> dict[str, Any]:
    return {
        "host": server.host,
        "port": server.port,
        "name": database,
        "username": username,
        "credential": "database_password",
    }


# -- Kafka --------------------------------------------------------------------------------------


def kafka_config(server: KafkaServer, username: str) -> dict[str, Any]:
    return {
        "bootstrap_servers": [server.bootstrap_servers],
        "username": username,
        "credential": "kafka_password",
    }


def kafka_admin(
    server: KafkaServer,
    folder: Path,
    *,
    topics: Mapping[str, Any] | None = None,
    users: Mapping[str, str] | None = None,
    acls: Sequence[Mapping[str, Any]] = (),
    **more: Any,
) -> Command:
    """Return the command that makes `server` have exactly these topics, users and ACLs."""
    users = users or {}
    config = {
        "bootstrap_servers": [server.bootstrap_servers],
        "username": server.admin_username,
        "credential": "admin",
        "topics": dict(topics or {}),
        "users": {name: {"credential": f"user_{name}"} for name in users},
        "acls": list(acls),
        **more,
    }
    secrets = {f"user_{name}": password for name, password in users.items()}
    return Command("kafka-admin", folder, config, {"admin": server.admin_password, **secrets})


def _login(server: KafkaServer) -> dict[str, Any]:
    return {
        "bootstrap_servers": server.bootstrap_servers,
        "security_protocol": "SASL_PLAINTEXT",
        "sasl_mechanism": "SCRAM-SHA-512",
        "sasl_plain_username": server.admin_username,
        "sasl_plain_password": server.admin_password,
    }


@contextmanager
def producer(server: KafkaServer) -> Iterator[Any]:
    """A producer that sends whatever it is given."""
    client = KafkaProducer(**_login(server), acks="all", linger_ms=5, max_request_size=4_000_000)
    try:
        yield client
        client.flush(timeout=30)
    finally:
        client.close(timeout=30)


def read_all(server: KafkaServer, topic: str, partitions: int) -> list[Any]:
    """Return all records of a topic, by partition and offset."""
    client = KafkaConsumer(**_login(server), enable_auto_commit=False, auto_offset_reset="earliest")
    try:
        assigned = [TopicPartition(topic, number) for number in range(partitions)]
        client.assign(assigned)
        ends = client.end_offsets(assigned)
        records: list[Any] = []
        deadline = time.monotonic() + 30
        while any(client.position(partition) < ends[partition] for partition in assigned):
            assert time.monotonic() < deadline, f"cannot read {topic}"
            for batch in client.poll(timeout_ms=200).values():
                records += batch
                deadline = time.monotonic() + 30  # however many there are
        return sorted(records, key=lambda record: (record.partition, record.offset))
    finally:
        client.close()

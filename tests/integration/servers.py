"""Real Redis, PostgreSQL with TimescaleDB, Kafka and llama-server for tests, from image roots.

    with postgres_server() as database:
        connect(database.dsn)
        database.kill()     # SIGKILL
        database.start()    # same port, same data

Each server runs as an unprivileged user in its image's root (read-only, private mounts, own PID
namespace), listens on a loopback port of its own and keeps its data in a temporary directory
that goes with the context. It dies with the process that started it, however that ends. Starting
needs root and the unpacked images (`python -m lab.image_builds`).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import random
import re
import secrets
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import ClassVar, TypeVar

from lab import image_builds as images
from lab.common import LOGS
from plugins.module_utils.lock import exclusive
from tests.integration.sandbox import SYSTEM_PATH, Sandbox, SandboxError

ROLES = Path(__file__).resolve().parents[2] / "roles"
HOST = "127.0.0.1"
# Below the range the kernel gives to outgoing connections: there, a client that keeps trying a
# dead server's port can end up connected to itself and hold the port.
_PORTS = range(20000, 32000)
_STOP_SECONDS = 20.0
_LOG_TAIL = 60
_PREFIX = "prime-spark-server-"
_LEFTOVER_SECONDS = 60.0
_LOG_SECONDS = 24 * 3600.0


def _tmp_options(role: str, uid: int) -> str:
    """The options of /tmp that a role gives its container, here for another user."""
    compose = ROLES / role / "templates" / "stack" / "compose.yml.j2"
    found = re.search(r"^ +- /tmp:(.+)$", compose.read_text(), re.MULTILINE)
    assert found, compose
    return re.sub(r"\{\{ \w+ \}\}", str(uid), found[1])


class ServerError(SandboxError):
    """A server did not start, or ended by itself; the message holds the end of its log."""


class Server(Sandbox, ABC):
    """One server process on a loopback port.

    `start`, `stop` (orderly) and `kill` (SIGKILL) may follow each other in any order; port, data
    and credentials stay the same.
    """

    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM
    start_seconds: ClassVar[float]

    def __init__(self, directory: Path, log: Path) -> None:
        super().__init__(directory)
        self.host = HOST
        self.port = _free_port()
        self.log = log
        self._process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def _command(self) -> list[str]:
        """The command to run in the root."""

    @abstractmethod
    def _answers(self, connection: socket.socket) -> bool:
        """Whether the server answers its own protocol on a fresh connection."""

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The server's own process id, as this machine sees it."""
        if self._process is None or not self.running:
            raise ServerError(f"{self.image} is not running")
        parent = self._process.pid
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        if not children:
            raise ServerError(f"{self.image} is not running")
        return int(children[0])

    def start(self) -> None:
        """Start and return once the server answers its protocol."""
        if self.running:
            raise ServerError(f"{self.image} is already running")
        self._prepare()
        with self.log.open("ab") as log:
            self._process = self._spawn(self._command(), stdout=log, stderr=subprocess.STDOUT)
        try:
            self._wait_until_answering()
        except BaseException:
            self.kill()
            raise

    def stop(self) -> None:
        """Ask the server to end and wait until it has; does nothing when it does not run."""
        if self._process is None or not self.running:
            return
        os.kill(self.pid, self.stop_signal)
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            raise ServerError(
                f"{self.image} did not stop within {_STOP_SECONDS:.0f} s\n{self.log_tail()}"
            ) from None

    def kill(self) -> None:
        """End the server at once, without a chance to clean up."""
        if self._process is None:
            return
        try:
            os.kill(self.pid, signal.SIGKILL)
            self._process.wait(_STOP_SECONDS)  # the parent reaps it and ends
        except (ServerError, ProcessLookupError, FileNotFoundError, subprocess.TimeoutExpired):
            self._process.kill()  # not started yet, or gone already
        self._process.wait()

    def log_tail(self, lines: int = _LOG_TAIL) -> str:
        """The last lines the server wrote."""
        try:
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
        except FileNotFoundError:
            return ""

    @abstractmethod
    def _prepare(self) -> None:
        """Called before each start, as root: write configuration into the data directory."""

    def _wait_until_answering(self) -> None:
        deadline = time.monotonic() + self.start_seconds
        while True:
            if not self.running:
                raise ServerError(f"{self.image} ended while starting\n{self.log_tail()}")
            try:
                with socket.create_connection((self.host, self.port), timeout=2) as connection:
                    if self._answers(connection):
                        return
            except OSError:
                pass  # not listening yet, or hung up on us
            if time.monotonic() > deadline:
                raise ServerError(
                    f"{self.image} did not answer on {self.host}:{self.port} within "
                    f"{self.start_seconds:.0f} s\n{self.log_tail()}"
                )
            time.sleep(0.02)


class RedisServer(Server):
    """Redis with a password for the default user and an append-only file."""

    image = "redis"
    uid = 999
    data_path = "/data"
    start_seconds = 10.0

    def __init__(self, directory: Path, log: Path, settings: Mapping[str, str]) -> None:
        super().__init__(directory, log)
        self.username = "default"
        self.password = secrets.token_urlsafe(24)
        self._settings = settings

    @property
    def url(self) -> str:
        """redis:// address with the credentials."""
        return f"redis://{self.username}:{self.password}@{self.host}:{self.port}/0"

    def _prepare(self) -> None:
        settings = {
            "bind": self.host,
            "port": str(self.port),
            "requirepass": self.password,
            "dir": self.data_path,
            "appendonly": "yes",
            "save": '""',
            "maxmemory": "64mb",
            **self._settings,
        }
        self._write("redis.conf", "".join(f"{key} {value}\n" for key, value in settings.items()))

    def _command(self) -> list[str]:
        return ["redis-server", f"{self.data_path}/redis.conf"]

    def _answers(self, connection: socket.socket) -> bool:
        connection.sendall(f"AUTH {self.username} {self.password}\r\nPING\r\n".encode())
        expected = b"+OK\r\n+PONG\r\n"
        return _receive(connection, len(expected)) == expected


class PostgresServer(Server):
    """PostgreSQL with TimescaleDB preloaded; log in over SCRAM as the superuser."""

    image = "timescale"
    uid = 70
    data_path = "/var/lib/postgresql/data"
    stop_signal = signal.SIGINT  # fast shutdown: connections are closed, not waited for
    start_seconds = 30.0

    def __init__(self, directory: Path, log: Path, settings: Mapping[str, str]) -> None:
        super().__init__(directory, log)
        self.username = "postgres"
        self.password = secrets.token_urlsafe(24)
        self.database = "postgres"
        self._settings = settings

    @property
    def dsn(self) -> str:
        """postgresql:// address of the superuser."""
        return (
            f"postgresql://{self.username}:{self.password}@{self.host}:{self.port}/{self.database}"
        )

    def _prepare(self) -> None:
        self._write("password", self.password + "\n")

    def _environment(self) -> dict[str, str]:
        return {
            "PATH": f"/usr/lib/postgresql/current/bin:{SYSTEM_PATH}",
            "PGDATA": f"{self.data_path}/cluster",
            "POSTGRES_PASSWORD_FILE": f"{self.data_path}/password",
            "POSTGRES_INITDB_ARGS": "--no-sync --no-instructions --encoding=UTF8 "
            "--locale-provider=builtin --builtin-locale=C.UTF-8 --locale=C.UTF-8 "
            "--auth-local=reject --auth-host=scram-sha-256",
        }

    def _command(self) -> list[str]:
        settings = {
            "listen_addresses": self.host,
            "port": str(self.port),
            "unix_socket_directories": "/tmp",
            "shared_preload_libraries": "timescaledb",
            "timescaledb.telemetry_level": "off",
            "shared_buffers": "64MB",
            "max_connections": "60",
            # A killed process loses nothing by this, only a crashed machine would.
            "fsync": "off",
            "full_page_writes": "off",
            **self._settings,
        }
        command = ["docker-entrypoint.sh", "postgres"]
        for key, value in settings.items():
            command += ["-c", f"{key}={value}"]
        return command

    def _answers(self, connection: socket.socket) -> bool:
        parameters = f"user\0{self.username}\0database\0{self.database}\0\0".encode()
        connection.sendall(struct.pack("!II", 8 + len(parameters), 196608) + parameters)
        # An authentication request; an error while the server still starts or recovers.
        return _receive(connection, 1) == b"R"


class KafkaServer(Server):
    """A single Kafka node (broker and controller), clients over SASL_PLAINTEXT, SCRAM-SHA-512.

    As in production, nothing is allowed that no ACL allows, save to the administrator.
    """

    image = "kafka"
    uid = 1000
    data_path = "/var/lib/kafka/data"
    tmp_options = _tmp_options("kafka", uid)
    start_seconds = 60.0

    def __init__(self, directory: Path, log: Path, settings: Mapping[str, str]) -> None:
        super().__init__(directory, log)
        self.admin_username = "admin"
        self.admin_password = secrets.token_urlsafe(24)
        self._controller_port = _free_port()
        self._controller_password = secrets.token_urlsafe(24)
        self._settings = settings

    @property
    def bootstrap_servers(self) -> str:
        """host:port for clients."""
        return f"{self.host}:{self.port}"

    def tool(self, script: str, *arguments: str) -> str:
        """Run one of Kafka's client scripts as the administrator; return what it printed."""
        return self.run(
            f"/opt/kafka/bin/{script}",
            *("--bootstrap-server", self.bootstrap_servers),
            *("--command-config", f"{self.data_path}/admin.properties"),
            *arguments,
        )

    def _prepare(self) -> None:
        controller = f"{self.host}:{self._controller_port}"
        scram = "org.apache.kafka.common.security.scram.ScramLoginModule required"
        plain = "org.apache.kafka.common.security.plain.PlainLoginModule required"
        login = f'{scram} username="{self.admin_username}" password="{self.admin_password}";'
        secret = self._controller_password
        settings = {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.bootstrap.servers": controller,
            "listeners": f"SASL_PLAINTEXT://{self.bootstrap_servers},CONTROLLER://{controller}",
            "listener.security.protocol.map": (
                "SASL_PLAINTEXT:SASL_PLAINTEXT,CONTROLLER:SASL_PLAINTEXT"
            ),
            "inter.broker.listener.name": "SASL_PLAINTEXT",
            "controller.listener.names": "CONTROLLER",
            "sasl.enabled.mechanisms": "SCRAM-SHA-512",
            "sasl.mechanism.inter.broker.protocol": "SCRAM-SHA-512",
            "sasl.mechanism.controller.protocol": "PLAIN",
            "listener.name.sasl_plaintext.scram-sha-512.sasl.jaas.config": login,
            "listener.name.controller.sasl.enabled.mechanisms": "PLAIN",
            "listener.name.controller.plain.sasl.jaas.config": (
                f'{plain} username="controller" password="{secret}" user_controller="{secret}";'
            ),
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": f"User:{self.admin_username};User:controller",
            "allow.everyone.if.no.acl.found": "false",
            "auto.create.topics.enable": "false",
            "log.dirs": f"{self.data_path}/log",
            "num.partitions": "1",
            "offsets.topic.replication.factor": "1",
            "offsets.topic.num.partitions": "1",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "transaction.state.log.num.partitions": "1",
            "share.coordinator.state.topic.replication.factor": "1",
            "share.coordinator.state.topic.min.isr": "1",
            # Tests wait for none of what these delays are good for.
            "group.initial.rebalance.delay.ms": "0",
            "controlled.shutdown.enable": "false",
            # A restarted broker is let in once its former self's session has run out.
            "broker.session.timeout.ms": "1500",
            "broker.heartbeat.interval.ms": "250",
            "log.cleaner.dedupe.buffer.size": "2097152",
            **self._settings,
        }
        lines = (f"{key}={value}\n" for key, value in settings.items())
        self._write("server.properties", "".join(lines))
        self._write(
            "admin.properties",
            "security.protocol=SASL_PLAINTEXT\nsasl.mechanism=SCRAM-SHA-512\n"
            f"sasl.jaas.config={login}\n",
        )
        # The tool reads its arguments from a file, so that no password is in the process list.
        arguments = ["format", "--standalone", "--cluster-id", _cluster_id()]
        arguments += ["--config", f"{self.data_path}/server.properties", "--add-scram"]
        arguments += [f"SCRAM-SHA-512=[name={self.admin_username},password={self.admin_password}]"]
        self._write("format.arguments", "\n".join(arguments) + "\n")

    def _environment(self) -> dict[str, str]:
        # A test broker handles little and lives briefly: start fast, stay small.
        return {
            "PATH": f"/opt/java/openjdk/bin:{SYSTEM_PATH}",
            "KAFKA_HEAP_OPTS": "-Xms128M -Xmx320M",
            "KAFKA_JVM_PERFORMANCE_OPTS": "-XX:+UseSerialGC -XX:TieredStopAtLevel=1",
        }

    def _command(self) -> list[str]:
        script = (
            "cd /opt/kafka/bin; [ -e $0/log/meta.properties ] || "
            "./kafka-storage.sh @$0/format.arguments; "
            "exec ./kafka-server-start.sh $0/server.properties"
        )
        return ["/bin/sh", "-euc", script, self.data_path]

    def _answers(self, connection: socket.socket) -> bool:
        # The whole of a client's log in: the broker has then read its users from the metadata.
        return _kafka_login(connection, self.admin_username, self.admin_password)


class LlamaServer(Server):
    """llama.cpp's llama-server with the self-test model, behind an API key.

    `pause` keeps it from answering while its port still accepts connections, until `resume`.
    """

    image = "llama"
    uid = 1000
    data_path = "/data"
    start_seconds = 30.0
    model = "prime-spark-self-test"

    def __init__(self, directory: Path, log: Path, settings: Mapping[str, str]) -> None:
        super().__init__(directory, log)
        self.api_key = secrets.token_urlsafe(24)
        self._settings = settings

    @property
    def url(self) -> str:
        """Address of the OpenAI-compatible API, without /v1."""
        return f"http://{self.host}:{self.port}"

    def pause(self) -> None:
        """Stop the process (SIGSTOP)."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let the process go on (SIGCONT)."""
        os.kill(self.pid, signal.SIGCONT)

    def _prepare(self) -> None:
        self._write("api-keys", self.api_key + "\n")

    def _command(self) -> list[str]:
        settings = {
            "host": self.host,
            "port": str(self.port),
            "model": "/models/self-test.gguf",
            "alias": self.model,
            "api-key-file": f"{self.data_path}/api-keys",
            "parallel": "2",
            "threads": "1",
            "threads-http": "8",
            "ctx-size": "4096",
            "cache-ram": "0",
            **self._settings,
        }
        arguments = [word for key, value in settings.items() for word in (f"--{key}", value)]
        return ["llama-server", *arguments, "--no-webui", "--no-warmup", "--offline"]

    def _answers(self, connection: socket.socket) -> bool:
        # 503 while the model is loaded.
        connection.sendall(b"GET /health HTTP/1.0\r\n\r\n")
        return b" 200 " in _receive(connection, 15)


AnyServer = TypeVar("AnyServer", bound=Server)


@contextmanager
def redis_server(settings: Mapping[str, str] | None = None) -> Iterator[RedisServer]:
    """A running Redis; `settings` are lines of redis.conf that override ours."""
    with _running(lambda path, log: RedisServer(path, log, settings or {})) as server:
        yield server


@contextmanager
def postgres_server(settings: Mapping[str, str] | None = None) -> Iterator[PostgresServer]:
    """A running PostgreSQL; `settings` are server parameters that override ours."""
    with _running(lambda path, log: PostgresServer(path, log, settings or {})) as server:
        yield server


@contextmanager
def kafka_server(settings: Mapping[str, str] | None = None) -> Iterator[KafkaServer]:
    """A running Kafka node; `settings` are lines of server.properties that override ours."""
    with _running(lambda path, log: KafkaServer(path, log, settings or {})) as server:
        yield server


@contextmanager
def llama_server(settings: Mapping[str, str] | None = None) -> Iterator[LlamaServer]:
    """A running llama-server; `settings` are its options (without dashes) that override ours."""
    with _running(lambda path, log: LlamaServer(path, log, settings or {})) as server:
        yield server


@contextmanager
def _running(create: Callable[[Path, Path], AnyServer]) -> Iterator[AnyServer]:
    """Create a server with a directory and a log of its own, start it, clean up afterwards."""
    if os.geteuid() != 0:
        raise ServerError("starting test servers needs root")
    _remove_leftovers()
    logs = LOGS / "servers"
    logs.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        directory = Path(tempfile.mkdtemp(prefix=_PREFIX))
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        stack.enter_context(exclusive(directory, 0))
        server = create(directory, logs / f"{directory.name}.log")
        root = images.root_path(server.image)
        if not root.is_dir():
            raise ServerError(
                f"no unpacked image in {root}: run `python -m lab.image_builds` first"
            )
        stack.callback(server.kill)
        try:
            server.start()
            yield server
        except BaseException as error:
            tail = "" if isinstance(error, ServerError) else f"\n{server.log_tail()}"
            error.add_note(f"{server.image}: log kept in {server.log}{tail}")
            raise
        server.log.unlink(missing_ok=True)


def _remove_leftovers() -> None:
    """Remove what a killed process left: directories that nobody has locked, logs of old."""
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        # A moment passes between making a directory and locking it.
        with suppress(OSError), exclusive(path, 0):
            if time.time() - path.stat().st_mtime < _LEFTOVER_SECONDS:
                continue
            shutil.rmtree(path, ignore_errors=True)
    for log in (LOGS / "servers").glob(f"{_PREFIX}*.log"):
        with suppress(OSError):
            if time.time() - log.stat().st_mtime > _LOG_SECONDS:
                log.unlink()


def _free_port() -> int:
    """A loopback port nobody listens on."""
    for port in random.sample(_PORTS, 200):
        with socket.socket() as probe:
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return port
    raise ServerError("no free loopback port")


def _receive(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size and (chunk := connection.recv(size - len(data))):
        data += chunk
    return data


def _cluster_id() -> str:
    """A Kafka cluster id: 16 random bytes in URL-safe base64 (a leading dash is refused)."""
    while True:
        identifier = base64.urlsafe_b64encode(os.urandom(16)).decode().rstrip("=")
        if not identifier.startswith("-"):
            return identifier


def _kafka_login(connection: socket.socket, username: str, password: str) -> bool:
    """Log in over SCRAM-SHA-512 (RFC 5802), framed as Kafka's protocol wants it."""

    def call(api: int, version: int, body: bytes) -> bytes:
        # Header version 1: api key, version, correlation id, client id "lab".
        request = struct.pack("!hhih", api, version, 1, 3) + b"lab" + body
        connection.sendall(struct.pack("!i", len(request)) + request)
        header = _receive(connection, 4)
        if len(header) < 4:
            raise ConnectionError("Kafka closed the connection")
        (size,) = struct.unpack("!i", header)
        return _receive(connection, size)[4:]

    def authenticate(message: str) -> dict[str, str]:
        data = message.encode()
        answer = call(36, 0, struct.pack("!i", len(data)) + data)
        (error, reason) = struct.unpack_from("!hh", answer)
        if error:
            return {}
        start = 4 + max(reason, 0) + 4
        fields = answer[start:].decode().split(",")
        return {field[0]: field[2:] for field in fields}

    mechanism = b"SCRAM-SHA-512"
    (error,) = struct.unpack_from("!h", call(17, 1, struct.pack("!h", len(mechanism)) + mechanism))
    if error:
        return False
    client_first = f"n={username},r={secrets.token_urlsafe(18)}"
    challenge = authenticate(f"n,,{client_first}")
    if "r" not in challenge:
        return False
    salted = hashlib.pbkdf2_hmac(
        "sha512", password.encode(), base64.b64decode(challenge["s"]), int(challenge["i"])
    )
    server_first = f"r={challenge['r']},s={challenge['s']},i={challenge['i']}"
    client_final = f"c=biws,r={challenge['r']}"
    message = f"{client_first},{server_first},{client_final}".encode()
    client_key = hmac.digest(salted, b"Client Key", "sha512")
    signature = hmac.digest(hashlib.sha512(client_key).digest(), message, "sha512")
    proof = bytes(left ^ right for left, right in zip(client_key, signature, strict=True))
    final = authenticate(f"{client_final},p={base64.b64encode(proof).decode()}")
    server_key = hmac.digest(salted, b"Server Key", "sha512")
    expected = base64.b64encode(hmac.digest(server_key, message, "sha512")).decode()
    return final.get("v") == expected

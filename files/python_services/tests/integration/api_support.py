"""A running API for the tests: its configuration, its users, and a client that speaks to it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import yaml
from redis import Redis
from tests.integration.servers import KafkaServer, LlamaServer, PostgresServer, RedisServer

from prime_spark.accounts.passwords import hasher
from prime_spark.accounts.users import HashParameters
from prime_spark.memory.nas import SENTINEL
from support import (
    Command,
    Daemon,
    create_database,
    create_role,
    database_config,
    free_port,
    kafka_admin,
    kafka_config,
    running,
)

ROLES = Path(__file__).resolve().parents[4] / "roles"
DATABASE_USER = "prime_spark_api"
SECRET = "secret-of-the-tests-32-characters-long"
PASSWORD = "correct horse battery staple"
# One user of each role, all with the same password.
USERS = {"alice": "admin", "oscar": "operator", "vera": "viewer"}


def role_defaults(role: str) -> dict[str, Any]:
    """What a role gives by default: the tests use the rights that the fleet has."""
    found: dict[str, Any] = yaml.safe_load((ROLES / role / "defaults" / "main.yml").read_text())
    return found


@cache
def password_hash(password: str = PASSWORD) -> str:
    return hasher(HashParameters()).hash(password)


def users_json(users: Mapping[str, str] = USERS) -> str:
    return json.dumps(
        {name: {"role": role, "password_hash": password_hash()} for name, role in users.items()}
    )


def create_redis_user(server: RedisServer) -> None:
    """The API's user, with the rights that roles/redis gives it."""
    create_redis_users(server, "api", password=SECRET)


def create_redis_users(server: RedisServer, *names: str, password: str) -> None:
    """Users with the rights that roles/redis gives them."""
    users = role_defaults("redis")["redis_users"]
    with Redis.from_url(server.url) as administrator:
        for name in names:
            rights = users[name]["rights"].split()
            administrator.execute_command(
                "ACL", "SETUSER", name, "reset", "on", f">{password}", *rights
            )


def redis_config(server: RedisServer) -> dict[str, Any]:
    return {
        "host": server.host,
        "port": server.port,
        "username": "api",
        "credential": "redis_password",
    }


def nowhere(name: str = "nowhere") -> dict[str, Any]:
    """A server that does not exist: its port is closed."""
    return {"host": "127.0.0.1", "port": 9, "username": name, "credential": "redis_password"}


@dataclass
class Servers:
    """The real servers behind an API; what is None does not exist."""

    redis: RedisServer | None = None
    kafka: KafkaServer | None = None
    postgres: PostgresServer | None = None
    database: str = "api"
    edge: LlamaServer | None = None
    cloud: LlamaServer | None = None

    def prepare(self, folder: Path) -> None:
        """Make users, topics, rights and tables, as the roles do."""
        if self.redis is not None:
            create_redis_user(self.redis)
        if self.kafka is not None:
            defaults = role_defaults("kafka")
            acls = [acl for acl in defaults["kafka_acls"] if "User:api" in acl["principal"]]
            kafka_admin(
                self.kafka,
                folder,
                topics=defaults["kafka_topics"],
                users={"api": SECRET},
                acls=acls,
            ).run("apply")
        if self.postgres is not None:
            create_database(self.postgres, self.database)
            create_role(self.postgres, DATABASE_USER, SECRET)
            config = {"database": database_config(self.postgres, self.database, "postgres")}
            Command("db", folder, config, {"database_password": self.postgres.password}).run(
                "migrate"
            )


def api_config(servers: Servers, share: Path, **changes: Any) -> dict[str, Any]:
    """The configuration of an API; `changes` replace or extend whole blocks."""
    share.mkdir(exist_ok=True)
    (share / SENTINEL).touch()
    redis = nowhere() if servers.redis is None else redis_config(servers.redis)
    kafka = {
        "bootstrap_servers": ["127.0.0.1:9"],
        "username": "api",
        "credential": "kafka_password",
    }
    database = {**nowhere(), "name": "nowhere", "credential": "database_password"}
    if servers.postgres is not None:
        database = database_config(servers.postgres, servers.database, DATABASE_USER)
    backends = []
    for source, server in (("edge", servers.edge), ("cloud", servers.cloud)):
        url = "http://127.0.0.1:9" if server is None else server.url
        backends.append(
            {
                "name": source,
                "source": source,
                "url": url,
                "credential": f"llm_{source}",
                "connect_seconds": 1.0,
                "timeout_seconds": 10.0,
                "breaker": {"failures": 3, "open_seconds": 0.5},
            }
        )
    config: dict[str, Any] = {
        "http": {"host": "127.0.0.1", "port": free_port()},
        "auth": {
            "users": {"credential": "users"},
            "signing_keys": [{"credential": "signing_key"}],
            "revocations_seconds": 0.2,
        },
        "redis": redis,
        "kafka": kafka if servers.kafka is None else kafka_config(servers.kafka, "api"),
        "memory": {
            "redis": redis,
            "nas": {"directory": str(share), "timeout_seconds": 2.0},
            "database": {"database": database, "timeout_seconds": 2.0},
            "cooldown_seconds": 0.3,
            "state": str(share.parent / "memory.sqlite"),
        },
        "llm": {"backends": backends, "models_seconds": 1.0},
        "artifacts": {"root": str(share), "timeout_seconds": 2.0},
        "limits": {"login": "10000/minute", "read": "100000/minute", "write": "100000/minute"},
        "vpn_status": str(share.parent / "vpn.json"),
        "documentation": True,
    }
    for block, values in changes.items():
        old = config.get(block)
        config[block] = {**old, **values} if isinstance(old, dict) else values
    return config


def credentials(servers: Servers) -> dict[str, str]:
    return {
        "redis_password": SECRET,
        "kafka_password": SECRET,
        "database_password": SECRET,
        "signing_key": "0123456789abcdef0123456789abcdef",
        "users": users_json(),
        "llm_edge": servers.edge.api_key if servers.edge else "none",
        "llm_cloud": servers.cloud.api_key if servers.cloud else "none",
    }


class Api:
    """A client of a running API, which remembers a token for each user."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.url = f"http://127.0.0.1:{daemon.port}"
        self.http = httpx.Client(base_url=self.url, timeout=30, trust_env=False)
        self._tokens: dict[str, str] = {}

    def ask(
        self, method: str, path: str, *, user: str | None = None, **more: Any
    ) -> httpx.Response:
        """Make a request, as `user` (logged in when needed) or as nobody."""
        headers = dict(more.pop("headers", {}))
        if user is not None:
            headers["Authorization"] = f"Bearer {self.token(user)}"
        return self.http.request(method, path, headers=headers, **more)

    def login(self, username: str, password: str = PASSWORD) -> httpx.Response:
        return self.ask(
            "POST", "/api/auth/login", json={"username": username, "password": password}
        )

    def refresh(self, token: str) -> httpx.Response:
        return self.ask("POST", "/api/auth/refresh", json={"refresh_token": token})

    def me(self, token: str) -> httpx.Response:
        return self.ask("GET", "/api/auth/me", headers={"Authorization": f"Bearer {token}"})

    def token(self, user: str) -> str:
        if user not in self._tokens:
            answer = self.login(user)
            assert answer.status_code == 200, answer.text
            self._tokens[user] = answer.json()["access_token"]
        return self._tokens[user]

    def forget_tokens(self) -> None:
        self._tokens.clear()

    def log(self) -> list[dict[str, Any]]:
        """The lines that the service has written."""
        lines = self.daemon.log.read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def audits(self, *actions: str) -> list[dict[str, Any]]:
        return [line for line in self.log() if line.get("audit") in actions]

    def subsystems(self, user: str = "vera") -> dict[str, Any]:
        answer = self.ask("GET", "/api/health/detailed", user=user)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()["subsystems"]
        return found


@contextmanager
def running_api(
    servers: Servers,
    folder: Path,
    secrets: Mapping[str, str] | None = None,
    **changes: Any,
) -> Iterator[Api]:
    """An API as systemd starts it."""
    folder.mkdir(exist_ok=True, parents=True)
    config = api_config(servers, folder / "share", **changes)
    command = Command("api", folder, config, {**credentials(servers), **(secrets or {})})
    with running(command) as daemon:
        wait_for(daemon)
        api = Api(daemon)
        try:
            yield api
        finally:
            api.http.close()


def wait_for(daemon: Daemon, seconds: float = 40) -> None:
    deadline = time.monotonic() + seconds
    while not daemon.get("/health")[0]:
        assert daemon.process is not None
        assert daemon.process.poll() is None, f"ended with {daemon.process.returncode}"
        assert time.monotonic() < deadline, "does not answer"
        time.sleep(0.05)


def problem(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """Check that an answer is the documented error, and return it."""
    assert answer.status_code == status, (answer.status_code, answer.text)
    body: dict[str, Any] = answer.json()
    assert set(body) == {"code", "detail", "request_id", "fields", "reasons"}
    assert body["code"] == code
    assert body["request_id"] == answer.headers["x-request-id"]
    return body


def fields(body: Mapping[str, Any]) -> Sequence[str]:
    return [item["field"] for item in body["fields"]]

"""What Redis lets whom do: {attempt: "allowed" or the beginning of its answer}. Needs redis.

Argument: where Redis listens, host:port. Users are tried whose passwords lie on the host.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

HOST, PORT = sys.argv[1].rsplit(":", 1)
# Service that has the password, by user.
SERVICES = {"telemetry": "telemetry", "api": "api", "dispatcher": "dispatcher", "agent": "agent"}
PASSWORDS = {
    user: path.read_text().strip()
    for user, service in SERVICES.items()
    if (path := Path("/etc/prime-spark") / service / "credentials" / "redis_password").exists()
}
EXPORTER = Path("/opt/prime-spark/stack/exporters/config/redis-exporter/secret/passwords.json")
if EXPORTER.exists():
    (PASSWORDS["exporter"],) = json.loads(EXPORTER.read_text()).values()
PIPELINE = Path("/opt/prime-spark/stack/airflow/config/airflow/secret/redis_password")
if PIPELINE.exists():
    PASSWORDS["pipeline"] = PIPELINE.read_text().strip()


def client(**login: Any) -> Any:
    once = Retry(NoBackoff(), 0)
    return redis.Redis(host=HOST, port=int(PORT), socket_timeout=5, retry=once, **login)


def outcome(attempt: Callable[[], object]) -> str:
    try:
        attempt()
    except redis.RedisError as error:
        return f"{type(error).__name__}: {error}"
    return "allowed"


def beyond(user: str) -> dict[str, Callable[[], object]]:
    """What nothing of this user's work needs; none of it would do harm if it were allowed."""
    them = client(username=user, password=PASSWORDS[user])
    task, value, key = "tasks:task:fleet-test", "memory:fleet-test", "fleet-test"
    return {
        "sets another key": lambda: them.hset(key, mapping={"x": "1"}),
        "lists keys": lambda: them.keys("*"),
        "flushes": them.flushall,
        "reads the configuration": lambda: them.config_get("dir"),
        "lists users": them.acl_list,
        **{
            "telemetry": {"reads": lambda: them.hgetall("metrics:fleet-test")},
            "api": {
                "deletes a task": lambda: them.delete(task),
                "forges a heartbeat": lambda: them.set("agent:fleet-test", "x", px=1),
                "takes the lease": lambda: them.set("tasks:lease", "x", nx=True, px=1),
            },
            "dispatcher": {
                "reads the memory": lambda: them.get(value),
                "forges a heartbeat": lambda: them.set("agent:fleet-test", "x", px=1),
                "reads a session": lambda: them.hgetall("auth:session:fleet-test"),
            },
            "agent": {
                "reads the memory": lambda: them.get(value),
                "reads a task": lambda: them.hgetall(task),
                "reads a session": lambda: them.hgetall("auth:session:fleet-test"),
            },
            "exporter": {"reads the memory": lambda: them.get(value)},
            "pipeline": {
                "reads the memory": lambda: them.get(value),
                "reads a session": lambda: them.hgetall("auth:session:fleet-test"),
                "changes metrics": lambda: them.hset("metrics:fleet-test", mapping={"x": "1"}),
            },
        }[user],
    }


default = client()
attempts: dict[str, Callable[[], object]] = {
    "default pings": default.ping,
    "default sets": lambda: default.set("fleet-test", "x"),
    "default gets": lambda: default.get("fleet-test"),
    "default lists keys": lambda: default.keys("*"),
    "default asks for information": default.info,
    "default reads the configuration": lambda: default.config_get("dir"),
    "default flushes": default.flushall,
    "default publishes": lambda: default.publish("fleet-test", "x"),
}
for name, secret in PASSWORDS.items():
    attempts[f"{name}, right password"] = client(username=name, password=secret).ping
    attempts[f"{name}, wrong password"] = client(username=name, password=secret[::-1]).ping
    attempts |= {f"{name} {what}": attempt for what, attempt in beyond(name).items()}
print(json.dumps({name: outcome(attempt) for name, attempt in attempts.items()}))

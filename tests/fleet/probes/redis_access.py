"""What Redis lets whom do: {attempt: "allowed" or the beginning of its answer}. Needs redis.

Argument: where Redis listens, host:port.
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
PASSWORD = Path("/etc/prime-spark/telemetry/credentials/redis_password").read_text().strip()


def client(**login: Any) -> Any:
    once = Retry(NoBackoff(), 0)
    return redis.Redis(host=HOST, port=int(PORT), socket_timeout=5, retry=once, **login)


def outcome(attempt: Callable[[], object]) -> str:
    try:
        attempt()
    except redis.RedisError as error:
        return f"{type(error).__name__}: {error}"
    return "allowed"


default = client()
telemetry = client(username="telemetry", password=PASSWORD)
wrong = client(username="telemetry", password=PASSWORD[::-1])
attempts: dict[str, Callable[[], object]] = {
    "default pings": default.ping,
    "default sets": lambda: default.set("fleet-test", "x"),
    "default gets": lambda: default.get("fleet-test"),
    "default lists keys": lambda: default.keys("*"),
    "default asks for information": default.info,
    "default reads the configuration": lambda: default.config_get("dir"),
    "default flushes": default.flushall,
    "default publishes": lambda: default.publish("fleet-test", "x"),
    "telemetry, wrong password": wrong.ping,
    "telemetry, right password": telemetry.ping,
    "telemetry sets another key": lambda: telemetry.hset("fleet-test", mapping={"x": "1"}),
    "telemetry reads": lambda: telemetry.hgetall("metrics:fleet-test"),
    "telemetry flushes": telemetry.flushall,
}
print(json.dumps({name: outcome(attempt) for name, attempt in attempts.items()}))

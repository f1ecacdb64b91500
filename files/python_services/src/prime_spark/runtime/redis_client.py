"""Redis clients that fail soon and come back by themselves."""

from __future__ import annotations

from typing import Any

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoPermissionError, RedisError

from prime_spark.config import RedisConfig, read_credential
from prime_spark.runtime.shared_redis import SharedRedis

# What a Redis operation raises: away, restarting, refusing, full.
REDIS_ERRORS = (RedisError, OSError, TimeoutError)


def redis_client(config: RedisConfig, *, timeout: float = 1.0) -> Redis:
    """Return a client that answers in bytes and waits at most `timeout` seconds for each step.

    A pooled connection that Redis has closed meanwhile (it was restarted) is replaced within the
    same call, once. A command that timed out is not repeated: Redis may be slow because of it.
    """
    return Redis(socket_timeout=timeout, socket_connect_timeout=timeout, **_options(config))


def shared_redis_client(config: RedisConfig, *, timeout: float = 1.0) -> SharedRedis:
    """Return a client as `redis_client` does, for many callers at a time and plain commands."""
    return SharedRedis(seconds=timeout, **_options(config))


def _options(config: RedisConfig) -> dict[str, Any]:
    return {
        "host": config.host,
        "port": config.port,
        "username": config.username,
        "password": read_credential(config.credential),
        "retry": Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,)),
    }


def describe_redis_error(error: BaseException) -> str:
    """Return one line about an error of Redis, without the values of the command."""
    if isinstance(error, NoPermissionError):
        return f"the user lacks a right: {error}"
    text = " ".join(str(error).split())
    return text or type(error).__name__

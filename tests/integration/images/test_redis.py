"""Redis answers, wants its password, and keeps what it acknowledged."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.integration.servers import RedisServer, redis_server

AT_ONCE = Retry(NoBackoff(), 0)


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with redis_server() as running:
        yield running


def test_answers(server: RedisServer) -> None:
    with redis.Redis.from_url(server.url) as client:
        assert client.ping()
        assert client.info()["redis_version"].startswith("8.")


@pytest.mark.parametrize("password", [None, "wrong"])
def test_refuses_without_the_password(server: RedisServer, password: str | None) -> None:
    with (
        redis.Redis(server.host, server.port, password=password, retry=AT_ONCE) as client,
        pytest.raises(redis.AuthenticationError),
    ):
        client.ping()


@pytest.mark.parametrize("end", ["kill", "stop"])
def test_data_outlives_the_process(server: RedisServer, end: str) -> None:
    port, pid = server.port, server.pid
    with redis.Redis.from_url(server.url) as client:
        client.set(end, "here")
    getattr(server, end)()
    assert not server.running
    with (
        redis.Redis.from_url(server.url, retry=AT_ONCE) as client,
        pytest.raises(redis.ConnectionError),
    ):
        client.ping()
    server.start()
    assert (server.port, server.pid != pid) == (port, True)
    with redis.Redis.from_url(server.url) as client:
        assert client.get(end) == b"here"


def test_settings_reach_the_server() -> None:
    with (
        redis_server({"maxmemory": "8mb", "maxmemory-policy": "allkeys-lru"}) as server,
        redis.Redis.from_url(server.url) as client,
    ):
        assert client.config_get("maxmemory*")["maxmemory"] == "8388608"
        assert client.config_get("maxmemory*")["maxmemory-policy"] == "allkeys-lru"

"""What the tests of the language models share: routers to real and to misbehaving servers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from prometheus_client import CollectorRegistry
from tests.integration.servers import LlamaServer, RedisServer

from prime_spark.config import RedisConfig
from prime_spark.events import Inference
from prime_spark.llm.router import LLMRouter
from prime_spark.llm.settings import LLMConfig
from prime_spark.runtime.redis_client import redis_client

T = TypeVar("T")


def run(work: Coroutine[Any, Any, T], seconds: float = 60) -> T:
    return asyncio.run(asyncio.wait_for(work, seconds))


def backend(server: LlamaServer, name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "source": name, "url": server.url, "credential": name, **more}


def write_credentials(folder: Path, secrets: dict[str, str]) -> None:
    for name, secret in secrets.items():
        (folder / name).write_text(secret + "\n")


@contextmanager
def paused(server: LlamaServer) -> Iterator[None]:
    """The server accepts connections and answers nothing."""
    server.pause()
    try:
        yield
    finally:
        if server.running:
            server.resume()


@contextmanager
def down(server: LlamaServer) -> Iterator[None]:
    """The server is not there, its port refuses."""
    server.kill()
    try:
        yield
    finally:
        if not server.running:
            server.start()


class Routed(LLMRouter):
    """A router that remembers its events and has its own metrics."""

    def __init__(self, backends: list[dict[str, Any]], redis: RedisServer | None = None) -> None:
        self.events: list[Inference] = []
        self.registry = CollectorRegistry()
        self.redis = None
        if redis is not None:
            self.redis = redis_client(
                RedisConfig(
                    host=redis.host, port=redis.port, username=redis.username, credential="redis"
                )
            )
        config = msgspec.convert({"backends": backends, "models_seconds": 0.2}, LLMConfig)
        super().__init__(
            config, redis=self.redis, record=self.events.append, registry=self.registry
        )

    def running(self, index: int = 0) -> int:
        return self._backends[index]._running

    def counted(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"prime_spark_llm_{name}", labels) or 0.0


@asynccontextmanager
async def routed(
    *backends: dict[str, Any], redis: RedisServer | None = None
) -> AsyncIterator[Routed]:
    router = Routed(list(backends), redis)
    try:
        yield router
    finally:
        await router.close()
        if router.redis is not None:
            await router.redis.aclose()


@asynccontextmanager
async def scripted(*pieces: bytes | float | None) -> AsyncIterator[str]:
    """A server that answers every connection with `pieces`, and yields its address.

    A number is a pause in seconds, None hangs up. It reads one request and understands none.
    """

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = [
            int(line.split(b":")[1])
            for line in head.lower().split(b"\r\n")
            if line.startswith(b"content-length:")
        ]
        await reader.readexactly(*length or [0])
        try:
            for piece in pieces:
                if piece is None:
                    break
                if isinstance(piece, bytes):
                    writer.write(piece)
                    await writer.drain()
                else:
                    await asyncio.sleep(piece)
        except OSError:
            pass  # the client has gone
        finally:
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


def http(
    status: str, body: bytes, kind: str = "application/json", length: int | None = None
) -> bytes:
    size = len(body) if length is None else length
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {size}\r\n\r\n"
    return head.encode() + body


STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"


def event(text: str | None = None, finish: str | None = None) -> bytes:
    delta = {"content": text} if text is not None else {}
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return b"data: " + msgspec.json.encode({"choices": [choice], "model": "stub"}) + b"\n\n"

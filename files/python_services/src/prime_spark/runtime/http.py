"""A very small HTTP server for /health and /metrics, for services that need no framework."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from http import HTTPStatus

import structlog
from prometheus_client import (
    GC_COLLECTOR,
    PLATFORM_COLLECTOR,
    PROCESS_COLLECTOR,
    REGISTRY,
    CollectorRegistry,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from prime_spark.config import HttpConfig
from prime_spark.runtime.health import Health

_log = structlog.get_logger(__name__)

_TIMEOUT_SECONDS = 5.0
_MAX_HEAD_BYTES = 8192
_MAX_CONNECTIONS = 256
# What the kernel keeps until we look; asyncio takes at most 100 of them at a time.
QUEUED_CONNECTIONS = 1024
_IP_FREEBIND = 15  # Linux; not in the socket module

# What the library tells of Python and the process of its own accord: nobody looks at it here, and a
# stranger learns versions from it. Nor are the times needed at which counters came into being.
for _collector in (GC_COLLECTOR, PLATFORM_COLLECTOR, PROCESS_COLLECTOR):
    REGISTRY.unregister(_collector)
disable_created_metrics()  # type: ignore[no-untyped-call]

METRICS_REFUSED = "metrics are for Prometheus and for this host"

Answer = tuple[int, str, bytes]


def listening_socket(host: str, port: int) -> socket.socket:
    """Return a TCP socket listening on an address that may not exist yet.

    IP_FREEBIND lets a service start before the VPN has brought its address up.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol by its number: asyncio sets TCP_NODELAY only on sockets that name it, and without
    # that an answer written in two pieces waits 40 ms for the client's acknowledgement.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET:
            listener.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
        listener.bind((host, port))
        listener.listen(QUEUED_CONNECTIONS)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise OSError(error.errno, f"cannot listen on {host}:{port}: {error.strerror}") from error
    return listener


class StatusServer:
    """Serves GET /health and GET /metrics; one request per connection.

    A connection lasts a few seconds at most, and less where too many come: then the oldest ends.
    """

    def __init__(self, health: Health, registry: CollectorRegistry, http: HttpConfig) -> None:
        self._http = http
        self._routes: dict[str, Callable[[], Answer]] = {
            "/health": lambda: _health_answer(health),
            "/metrics": lambda: (200, CONTENT_TYPE_LATEST, generate_latest(registry)),
        }
        self._connections: dict[asyncio.StreamWriter, None] = {}  # the oldest first

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Serve for as long as the context lasts."""
        host, port = self._http.host, self._http.port
        listener = listening_socket(host, port)
        server = await asyncio.start_server(self._handle, sock=listener, limit=_MAX_HEAD_BYTES)
        listener.listen(QUEUED_CONNECTIONS)  # asyncio has made the queue shorter
        _log.info("listening", host=host, port=port)
        try:
            yield
        finally:
            server.close()

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._connections) >= _MAX_CONNECTIONS:
            oldest = next(iter(self._connections))
            del self._connections[oldest]
            oldest.transport.abort()
        self._connections[writer] = None
        writer.transport.set_write_buffer_limits(0)  # `drain` is to wait for all of the answer
        try:
            async with asyncio.timeout(_TIMEOUT_SECONDS):
                client = str(writer.get_extra_info("peername")[0])
                answer, with_body = await self._answer(reader, client)
                writer.write(_encode(answer, with_body=with_body))
                await writer.drain()
        except TimeoutError:
            writer.transport.abort()  # too slow, also in taking the answer
        except (OSError, asyncio.IncompleteReadError):
            pass  # the client went away
        finally:
            self._connections.pop(writer, None)
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, client: str) -> tuple[Answer, bool]:
        """Read one request head; return the answer and whether its body is sent."""
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            return _plain(431, "request head too large"), True
        parts = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
        if len(parts) != 3 or not parts[2].startswith("HTTP/1."):
            return _plain(400, "not an HTTP/1 request"), True
        method, target, _ = parts
        path = target.split("?", 1)[0]
        route = self._routes.get(path)
        if route is None:
            return _plain(404, "only /health and /metrics are here"), method != "HEAD"
        if method not in {"GET", "HEAD"}:
            return _plain(405, "only GET is allowed"), True
        if path == "/metrics" and not self._http.may_read_metrics(client):
            return _plain(403, METRICS_REFUSED), method == "GET"
        return route(), method == "GET"


def _health_answer(health: Health) -> Answer:
    status, body = health.response()
    return status, "application/json", body


def _plain(status: int, text: str) -> Answer:
    return status, "text/plain; charset=utf-8", text.encode() + b"\n"


def _encode(answer: Answer, *, with_body: bool) -> bytes:
    status, content_type, body = answer
    allow = "Allow: GET, HEAD\r\n" if status == 405 else ""
    head = (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n"
        f"Content-Type: {content_type}\r\n"
        f"Content-Length: {len(body)}\r\n"
        f"{allow}Connection: close\r\n\r\n"
    )
    return head.encode("latin-1") + (body if with_body else b"")

"""What the FastAPI services share: /health, /metrics, request metrics, and running uvicorn."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import time
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from functools import cache
from typing import Any

import uvicorn
from fastapi import APIRouter, FastAPI, Request, Response
from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from prime_spark import __version__
from prime_spark.config import Config, HttpConfig, LogLevel
from prime_spark.runtime.health import Health
from prime_spark.runtime.http import METRICS_REFUSED, QUEUED_CONNECTIONS, listening_socket
from prime_spark.runtime.http_protocol import LimitedProtocol
from prime_spark.runtime.service import Service

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]

# Past one second too: an SLO of one second cannot be checked by buckets that end there.
_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
# Anything else a client sends counts as one, so that it cannot make up label values.
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_DRAIN_SECONDS = 10
# Objects made and not freed; a request makes a few hundred that need no collector.
_COLLECT_AFTER = 20_000
# asyncio takes as many connections in one turn as it is told to queue. So few that the requests of
# those that it has taken are read before there are too many.
_ACCEPTED_AT_ONCE = 100
# How old the Date of an answer may be.
_TICK_SECONDS = 1.0


class WebConfig(Config, frozen=True):
    """Configuration of a service that so far only answers over HTTP."""

    http: HttpConfig
    log_level: LogLevel = "info"


class HttpMetrics:
    """Counts requests by method, route template and status, and times them.

    Requests for no route share the endpoint `unmatched`: a scan of random paths must not create
    series.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        requests = Counter(
            "fastapi_requests",
            "HTTP requests answered",
            ["method", "endpoint", "status"],
            registry=registry,
        )
        seconds = Histogram(
            "fastapi_request_duration_seconds",
            "Time from the request to the end of the answer",
            ["method", "endpoint"],
            buckets=_BUCKETS,
            registry=registry,
        )
        # Given the labels' values; looking them up each time is dearer than counting.
        self._requests = cache(requests.labels)
        self._seconds = cache(seconds.labels)

    def count(self, method: str, endpoint: str, status: int, seconds: float) -> None:
        """Note an answered request; `method` and `endpoint` as of `method_of`, `endpoint_of`."""
        self._requests(method, endpoint, status).inc()
        self._seconds(method, endpoint).observe(seconds)


def method_of(scope: Message) -> str:
    """Return the method as the metrics name it."""
    method: str = scope["method"]
    return method if method in METHODS else "OTHER"


def endpoint_of(scope: Message) -> str:
    """Return the template of the route that was found."""
    endpoint: str = getattr(scope.get("route"), "path", "unmatched")
    return endpoint


class RequestMetrics:
    """ASGI middleware: `HttpMetrics` until the last byte of the answer was handed over."""

    def __init__(self, app: Application, registry: CollectorRegistry) -> None:
        self._app = app
        self._metrics = HttpMetrics(registry)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 500  # what the server answers when the application raises
        started = time.perf_counter()

        async def observe(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, observe)
        finally:
            seconds = time.perf_counter() - started
            self._metrics.count(method_of(scope), endpoint_of(scope), status, seconds)


def metrics_router(registry: CollectorRegistry, http: HttpConfig) -> APIRouter:
    """Return /metrics, for Prometheus: not part of any documented API."""
    router = APIRouter()

    @router.get("/metrics", include_in_schema=False)
    async def read_metrics(request: Request) -> Response:
        """Return the metrics in Prometheus' text format."""
        if request.client is None or not http.may_read_metrics(request.client.host):
            return Response(METRICS_REFUSED, 403, media_type="text/plain")
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return router


def create_app(
    title: str, health: Health, http: HttpConfig, registry: CollectorRegistry = REGISTRY
) -> FastAPI:
    """Return an application with /health, /metrics and the request metrics.

    No documentation: its pages load scripts from elsewhere, and only our own services ask here.
    """
    app = FastAPI(title=title, version=__version__, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(RequestMetrics, registry=registry)

    @app.get("/health")
    async def read_health() -> Response:
        """Return the state of the service and what it depends on; 503 when it cannot work."""
        status, body = health.response()
        return Response(body, status, media_type="application/json")

    app.include_router(metrics_router(registry, http))
    return app


async def serve(
    app: FastAPI | Application,
    http: HttpConfig,
    service: Service,
    drain_seconds: int = _DRAIN_SECONDS,
) -> None:
    """Serve `app` until the service is told to stop.

    Requests under way are finished first, or cut off after `drain_seconds`.
    """
    server = _Server(
        uvicorn.Config(
            app,
            http=LimitedProtocol,
            ws="none",
            backlog=_ACCEPTED_AT_ONCE,
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,  # nothing stands in front; anyone could claim to be another
            lifespan="on",
            timeout_graceful_shutdown=drain_seconds,
        )
    )
    listener = listening_socket(http.host, http.port)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    started = asyncio.create_task(server.wait_started())
    stopping = asyncio.create_task(service.stop.wait())
    try:
        await asyncio.wait({serving, started}, return_when=asyncio.FIRST_COMPLETED)
        if started.done():
            tune_gc()
            service.ready(f"listening on {http.host}:{http.port}")
        await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (started, stopping):
            task.cancel()
        server.end()
        await serving
        listener.close()


def tune_gc() -> None:
    """Keep what the start has made out of the search for garbage, and search less often.

    Looking through all of FastAPI's objects stops the event loop for tens of milliseconds: a sixth
    of what a request costs that makes garbage of its own, as one to Redis does.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER, 20, 20)


class _Server(uvicorn.Server):
    """uvicorn that says when it has started, and leaves the signals to `run_service`."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._listening = asyncio.Event()
        self._ending = asyncio.Event()

    def end(self) -> None:
        """Finish the requests under way, then return from `serve`."""
        self.should_exit = True
        self._ending.set()

    async def main_loop(self) -> None:
        """Wait for the end; uvicorn's own loop wakes an idle process ten times a second."""
        while not await self.on_tick(0):  # which sets the Date
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_TICK_SECONDS):
                    await self._ending.wait()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start listening."""
        await super().startup(sockets)
        for listener in sockets or []:
            listener.listen(QUEUED_CONNECTIONS)
        if self.started:
            self._listening.set()

    async def wait_started(self) -> None:
        """Return once requests are answered."""
        await self._listening.wait()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Do not install signal handlers."""
        yield

"""The agent's HTTP interface."""

from __future__ import annotations

import msgspec
from fastapi import FastAPI, Request, Response
from prometheus_client import CollectorRegistry

from prime_spark.agent.auth import Callers
from prime_spark.agent.errors import BusyError, ConflictError
from prime_spark.agent.executor import Executor
from prime_spark.agent.metrics import AgentMetrics
from prime_spark.config import HttpConfig
from prime_spark.runtime.asgi import create_app
from prime_spark.runtime.health import Health
from prime_spark.tasks.protocol import ExecuteRequest

_RETRY_SECONDS = 2


def agent_app(
    health: Health,
    executor: Executor,
    callers: Callers,
    *,
    metrics: AgentMetrics,
    max_request_bytes: int,
    registry: CollectorRegistry,
    http: HttpConfig,
) -> FastAPI:
    """Return the application: POST /api/execute, /health and /metrics."""
    app = create_app("Prime Spark agent", health, http, registry)

    @app.post("/api/execute")
    async def execute(request: Request) -> Response:
        """Execute a task and answer once it has ended."""
        if callers.identify(request.headers.get("authorization")) is None:
            metrics.refused.labels("credentials").inc()
            return _error(401, "a valid bearer token is needed", {"WWW-Authenticate": "Bearer"})
        body = await _body(request, max_request_bytes)
        if body is None:
            metrics.refused.labels("size").inc()
            return _error(413, f"a request has at most {max_request_bytes} bytes")
        try:
            task = msgspec.json.decode(body, type=ExecuteRequest)
        except msgspec.DecodeError as error:
            metrics.refused.labels("invalid").inc()
            return _error(422, str(error))
        try:
            answer = await executor.execute(task)
        except ConflictError as error:
            metrics.refused.labels("conflict").inc()
            return _error(409, str(error))
        except BusyError as error:
            metrics.refused.labels("busy").inc()
            return _error(503, str(error), {"Retry-After": str(_RETRY_SECONDS)})
        return Response(msgspec.json.encode(answer), media_type="application/json")

    return app


async def _body(request: Request, limit: int) -> bytes | None:
    """Return the body, or None once it is larger than `limit`."""
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and int(declared) > limit:
        return None
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > limit:
            return None
    return bytes(body)


def _error(status: int, detail: str, headers: dict[str, str] | None = None) -> Response:
    content = msgspec.json.encode({"detail": detail})
    return Response(content, status, headers, media_type="application/json")

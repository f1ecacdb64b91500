"""The application: routes, errors, documentation, and the middleware around it all."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from prometheus_client import CollectorRegistry

from prime_spark import __version__
from prime_spark.api import docs, errors
from prime_spark.api.authorization import SCHEME, allow_generate, allow_write
from prime_spark.api.dependencies import Services
from prime_spark.api.middleware import Large, Middleware
from prime_spark.api.routers import auth, health, llm, memory, tasks
from prime_spark.api.settings import LimitsConfig
from prime_spark.config import HttpConfig
from prime_spark.runtime.asgi import metrics_router

_DESCRIPTION = """The HTTP API of the Prime Spark fleet.

Log in with `/api/auth/login` and send the access token as `Authorization: Bearer …`. A *viewer*
may read, an *operator* may also generate, keep and delete values and submit tasks, an *admin* also
sees everybody's tasks. Every error is a `Problem`; `X-Request-ID` names a request in the log and in
the table of events.
"""
_TAGS = [
    {"name": "auth", "description": "Logging in and out"},
    {"name": "health", "description": "How the API and what it depends on are doing"},
    {"name": "llm", "description": "Language models on the edge and in the cloud"},
    {"name": "memory", "description": "Values by key: Redis, NAS, PostgreSQL"},
    {"name": "tasks", "description": "Work for the agents"},
]


def create_app(
    services: Services,
    limits: LimitsConfig,
    registry: CollectorRegistry,
    http: HttpConfig,
    *,
    documentation: bool = False,
) -> Middleware:
    """Return the application; `registry` is what /metrics shows."""
    app = FastAPI(
        title="Prime Spark API",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json" if documentation else None,
        redirect_slashes=False,
    )
    errors.install(app)
    # In one flat list, what is asked for most first: a router that is included as such is asked for
    # a match several times for each request, which is a sixth of what `me` costs.
    for router in (
        health.router,
        memory.router,
        auth.router,
        llm.router,
        tasks.router,
        metrics_router(registry, http),
        *([docs.router] if documentation else []),
    ):
        app.router.routes.extend(router.routes)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    large = {
        "/api/llm/generate": Large(limits.generate_body_bytes, allow_generate),
        "/api/memory/set": Large(limits.memory_body_bytes, allow_write),
    }
    return Middleware(app, services, body_bytes=limits.body_bytes, large=large)


def _openapi(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        schema = get_openapi(
            title=app.title,
            version=app.version,
            description=_DESCRIPTION,
            routes=app.routes,
            tags=_TAGS,
        )
        schema.setdefault("components", {})["securitySchemes"] = {
            SCHEME: {
                "type": "http",
                "scheme": "bearer",
                "bearerFormat": "JWT",
                "description": "The `access_token` of `/api/auth/login`",
            }
        }
        schema["components"]["schemas"] |= tasks.payload_schemas()
        # FastAPI's own models of a 422; ours has taken their place on every route.
        for name in ("HTTPValidationError", "ValidationError"):
            schema["components"].get("schemas", {}).pop(name, None)
        app.openapi_schema = schema
    return app.openapi_schema

"""What the API is measured against: the same models, log-in check and Redis call, nothing else.

The tokens are checked by the same code, which remembers those it knows; the Redis client has the
same time limits. No metrics, events, limits, audit, security headers, request ids or error model:
what a FastAPI application is before any of that. Without postponed annotations: they name what is
local here.
"""

import sys
import time
from typing import Annotated, Any

import msgspec
import uvicorn
import uvloop
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from redis.asyncio import Redis

from prime_spark.api.auth.tokens import AccessTokens, TokenError
from prime_spark.api.routers.auth import Me
from prime_spark.api.routers.health import HealthReport
from prime_spark.api.routers.llm import Generate, Generated
from prime_spark.api.routers.memory import Set, Stored
from prime_spark.runtime.asgi import tune_gc


def create_app(redis: Redis, key: str) -> FastAPI:
    """Return the application; `key` signs the tokens, as the API's does."""
    app = FastAPI(title="Baseline")
    roles = {"alice": "admin", "oscar": "operator", "vera": "viewer"}
    tokens = AccessTokens([key], "prime-spark", "prime-spark-api", 600)

    async def caller(request: Request) -> Me:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            raise HTTPException(401)
        try:
            name = tokens.read(token).username
            return Me(username=name, role=roles[name])  # type: ignore[arg-type]
        except (TokenError, KeyError):
            raise HTTPException(401) from None

    Caller = Annotated[Me, Depends(caller)]  # noqa: N806 (a type)

    @app.get("/health")
    async def health() -> HealthReport:
        return HealthReport(
            service="baseline",
            version="0",
            status="ok",
            uptime_seconds=time.monotonic(),
            components={
                name: {"ok": True, "detail": "", "essential": False, "seconds": 1.0}  # type: ignore[misc]
                for name in ("redis", "kafka", "timescale", "nas")
            },
        )

    @app.get("/api/auth/me")
    async def me(caller: Caller) -> Me:
        return caller

    @app.get("/api/memory/get/{key}")
    async def get(key: str, caller: Caller) -> Response:
        data: Any = await redis.get(f"memory:{key}")
        if data is None:
            raise HTTPException(404)
        return Response(data[1:], media_type="application/json")

    @app.post("/api/memory/set")
    async def set_value(body: Set, caller: Caller) -> Stored:
        await redis.set(f"memory:{body.key}", b"j" + msgspec.json.encode(body.value), ex=3600)
        return Stored(key=body.key, tier=body.tier)

    @app.post("/api/llm/generate")
    async def generate(body: Generate, caller: Caller) -> Generated:
        data: Any = await redis.get(f"baseline:{body.prompt}")
        return Generated(**msgspec.json.decode(data))

    return app


def main() -> None:
    """Serve on a port with the API's own uvicorn settings."""
    port, url, key = sys.argv[1:]
    config = uvicorn.Config(
        create_app(Redis.from_url(url, socket_timeout=1, socket_connect_timeout=1), key),
        port=int(port),
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
    )
    config.load()
    tune_gc()  # as the API's server does
    uvloop.run(uvicorn.Server(config).serve())


if __name__ == "__main__":
    main()

"""How the API and everything it depends on are doing."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Request, Response
from pydantic import Field

from prime_spark import __version__
from prime_spark.api.authorization import SECURED, may_read
from prime_spark.api.dependencies import services_of
from prime_spark.api.errors import GUARDED, problems
from prime_spark.api.schema import Output
from prime_spark.api.subsystems import Subsystems

router = APIRouter(tags=["health"])


class Component(Output):
    """One thing the service depends on."""

    ok: bool
    detail: str
    essential: bool
    seconds: float = Field(description="Seconds in this state")


class HealthReport(Output):
    """The service's own state: degraded while something it depends on is not well."""

    service: str = Field(examples=["api"])
    version: str = Field(examples=[__version__])
    status: Literal["ok", "degraded", "failing"] = Field(examples=["ok"])
    uptime_seconds: float = Field(examples=[3600.0])
    components: dict[str, Component]


class DetailedHealth(Output):
    """The state of every subsystem."""

    service: str = Field(examples=["api"])
    version: str = Field(examples=[__version__])
    status: Literal["ok", "degraded"] = Field(examples=["ok"])
    subsystems: Subsystems


@router.get(
    "/health", summary="Health of the API", response_model=HealthReport, responses=problems()
)
async def health(request: Request) -> Response:
    """Return the service's state. Asks nobody, needs no token, is not limited."""
    status, body = services_of(request).health.response()
    return Response(body, status, media_type="application/json")


@router.get(
    "/api/health/detailed",
    summary="Health of every subsystem",
    dependencies=[may_read],
    responses=problems(*GUARDED),
    openapi_extra=SECURED,
)
async def detailed(request: Request) -> DetailedHealth:
    """Ask every subsystem, at most every two seconds. Answers 200 whatever they say."""
    subsystems = await services_of(request).watch.look()
    states = {getattr(subsystems, name).status for name in Subsystems.model_fields}
    return DetailedHealth(
        service="api",
        version=__version__,
        status="ok" if states == {"ok"} else "degraded",
        subsystems=subsystems,
    )

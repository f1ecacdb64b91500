"""Everything that the routes use, in one place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from fastapi import Request

from prime_spark.api.artifacts import Artifacts
from prime_spark.api.auth.service import Auth
from prime_spark.api.rate_limit import Rates
from prime_spark.api.request_log import RequestLog
from prime_spark.api.subsystems import Watch
from prime_spark.llm.router import LLMRouter
from prime_spark.memory.memory import Memory
from prime_spark.runtime.health import Health
from prime_spark.tasks.coordinator import AgentCoordinator

SCOPE_KEY = "prime_spark.services"


@dataclass(frozen=True, slots=True)
class Services:
    """What the routes of one application use."""

    health: Health
    auth: Auth
    rates: Rates
    memory: Memory
    coordinator: AgentCoordinator
    llm: LLMRouter
    artifacts: Artifacts
    watch: Watch
    request_log: RequestLog


def services_of(request: Request) -> Services:
    """Return what the application of `request` was built with."""
    return cast("Services", request.scope[SCOPE_KEY])

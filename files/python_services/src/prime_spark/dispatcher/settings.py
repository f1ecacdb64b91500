"""Configuration of the dispatcher."""

from __future__ import annotations

from typing import Annotated

import msgspec

from prime_spark.config import (
    Config,
    CredentialName,
    HttpConfig,
    LogLevel,
    Positive,
    PositiveSeconds,
    RedisConfig,
)
from prime_spark.events import Name


class AgentAddress(Config, frozen=True):
    """An agent, by the name in its heartbeats, and the URL it listens on."""

    name: Name
    url: Annotated[str, msgspec.Meta(pattern=r"^https?://[^\s/]+\Z")]


class DispatcherConfig(Config, frozen=True):
    """Configuration of prime-spark-dispatcher.

    The agents stand here and not in Redis, so that the credential goes to no other address.
    `agent_dead_seconds` has to be the TTL of the agents' heartbeats: no agent is taken for
    dead before so much time has passed with Redis answering. Every `poll_seconds` Redis is asked
    what there is to do, but not while there is nothing.
    """

    redis: RedisConfig
    agents: list[AgentAddress]
    credential: CredentialName
    http: HttpConfig
    lease_seconds: Annotated[float, msgspec.Meta(ge=0.5, le=120)] = 10.0
    poll_seconds: Annotated[float, msgspec.Meta(ge=0.02, le=10)] = 0.2
    agent_dead_seconds: PositiveSeconds = 15.0
    task_seconds: PositiveSeconds = 600.0
    grace_seconds: PositiveSeconds = 10.0
    max_attempts: Annotated[int, msgspec.Meta(ge=1, le=20)] = 3
    retry_seconds: PositiveSeconds = 2.0
    cooldown_seconds: PositiveSeconds = 10.0
    keep_seconds: Positive = 7 * 24 * 3600
    max_result_bytes: Positive = 256 * 1024
    log_level: LogLevel = "info"

    def __post_init__(self) -> None:
        names = [agent.name for agent in self.agents]
        if len(set(names)) != len(names):
            raise ValueError("two agents have the same name")

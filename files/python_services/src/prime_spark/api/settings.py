"""Configuration of the API."""

from __future__ import annotations

from typing import Annotated

import msgspec

from prime_spark.accounts.lockout import LockoutConfig
from prime_spark.config import (
    Config,
    HttpConfig,
    KafkaConfig,
    LogLevel,
    NonEmpty,
    Positive,
    PositiveSeconds,
    RedisConfig,
    Secret,
)
from prime_spark.kafka.publisher import PublisherConfig
from prime_spark.llm.settings import LLMConfig
from prime_spark.memory.settings import MemoryConfig
from prime_spark.runtime.window import Rate
from prime_spark.tasks.settings import CoordinatorConfig


class AuthConfig(Config, frozen=True):
    """Who may log in and how long that lasts.

    The credential `users` holds JSON: `{"alice": {"role": "admin", "password_hash": "$argon2…"}}`.
    The first of `signing_keys` signs access tokens, every one is accepted: put a new key first and
    drop the old one once `access_seconds` have passed. A refresh may be repeated from the same
    address for `refresh_grace_seconds`. Of a user's last `max_sessions` logins each has a session,
    unless it has ended; the ones before have none. `hash_calls` password hashes are computed at a
    time, and a login waits `hash_wait_seconds` for its turn.
    """

    users: Secret
    signing_keys: Annotated[list[Secret], msgspec.Meta(min_length=1, max_length=8)]
    issuer: NonEmpty = "prime-spark"
    audience: NonEmpty = "prime-spark-api"
    access_seconds: Annotated[int, msgspec.Meta(ge=1, le=3600)] = 600
    refresh_idle_seconds: Positive = 7 * 24 * 3600
    refresh_max_seconds: Positive = 30 * 24 * 3600
    max_sessions: Positive = 1000
    refresh_grace_seconds: Annotated[float, msgspec.Meta(ge=0, le=300)] = 30.0
    hash_calls: Annotated[int, msgspec.Meta(ge=1, le=16)] = 2
    hash_wait_seconds: PositiveSeconds = 5.0
    revocations_seconds: PositiveSeconds = 2.0


class LimitsConfig(Config, frozen=True):
    """Requests per client address (`login`) or user (the others), and sizes of bodies in bytes."""

    login: Rate = "30/minute"
    read: Rate = "1200/minute"
    write: Rate = "600/minute"
    generate: Rate = "60/minute"
    body_bytes: Positive = 128 * 1024
    generate_body_bytes: Positive = 1024 * 1024
    memory_body_bytes: Positive = 4 * 1024 * 1024


class ArtifactsConfig(Config, frozen=True):
    """Where the agents leave files: `root` is the mounted share, with its sentinel."""

    root: NonEmpty
    max_bytes: Positive = 64 * 1024 * 1024
    timeout_seconds: PositiveSeconds = 10.0
    max_calls: Annotated[int, msgspec.Meta(ge=1, le=64)] = 4


class ApiConfig(Config, frozen=True):
    """Configuration of prime-spark-api. `vpn_status` is the file that the VPN's timer writes.

    With `documentation` every route is described under /docs and /openapi.json, to anybody.
    """

    http: HttpConfig
    auth: AuthConfig
    redis: RedisConfig
    kafka: KafkaConfig
    memory: MemoryConfig
    llm: LLMConfig
    artifacts: ArtifactsConfig
    lockout: LockoutConfig = LockoutConfig()
    limits: LimitsConfig = LimitsConfig()
    publisher: PublisherConfig = PublisherConfig()
    coordinator: CoordinatorConfig = CoordinatorConfig()
    vpn_status: NonEmpty = "/run/prime-spark/vpn.json"
    documentation: bool = False
    log_level: LogLevel = "info"

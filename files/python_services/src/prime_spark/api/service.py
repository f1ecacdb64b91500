"""prime-spark-api: the fleet's HTTP API."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence

import uvloop
from prometheus_client import REGISTRY

from prime_spark.accounts.passwords import Passwords
from prime_spark.accounts.users import Users
from prime_spark.api.app import create_app
from prime_spark.api.artifacts import Artifacts
from prime_spark.api.auth.lockout import Lockout
from prime_spark.api.auth.service import Auth
from prime_spark.api.auth.sessions import Sessions
from prime_spark.api.auth.tokens import AccessTokens
from prime_spark.api.dependencies import Services
from prime_spark.api.rate_limit import Rates
from prime_spark.api.request_log import RequestLog
from prime_spark.api.settings import ApiConfig
from prime_spark.api.subsystems import Watch
from prime_spark.config import ConfigError, fail, read_credential, service_main
from prime_spark.kafka.publisher import EventPublisher
from prime_spark.llm.router import LLMRouter
from prime_spark.memory.memory import Memory
from prime_spark.runtime.asgi import HttpMetrics, serve
from prime_spark.runtime.health import Health
from prime_spark.runtime.logs import configure_logging
from prime_spark.runtime.redis_client import gathering_redis_client, redis_client
from prime_spark.runtime.service import Service, close_within, run_service
from prime_spark.tasks.coordinator import AgentCoordinator
from prime_spark.vpn import VPNManager

# Together less than the 15 seconds that `run_service` gives.
_DRAIN_SECONDS = 7
_CLOSE_SECONDS = 6.0


def run(config: ApiConfig) -> int:
    """Run the service; return the exit status."""
    configure_logging("api", config.log_level)
    try:  # the credentials' contents too, before anything is started
        users, tokens = users_of(config), tokens_of(config)
    except ConfigError as error:
        fail(str(error))
    return run_service(
        lambda service: _serve(config, users, tokens, service), new_loop=uvloop.new_event_loop
    )


async def _serve(config: ApiConfig, users: Users, tokens: AccessTokens, service: Service) -> None:
    redis = redis_client(config.redis)
    publisher = EventPublisher(config.kafka, "prime-spark-api", config.publisher, REGISTRY)
    memory = Memory.from_config(config.memory)
    # A client of its own: each submission holds a connection until Redis has the task on disk.
    submissions = redis_client(config.redis)
    coordinator = AgentCoordinator(submissions, config.coordinator)
    request_log = RequestLog(HttpMetrics(REGISTRY), publisher)
    kept = gathering_redis_client(config.redis)
    llm = LLMRouter(config.llm, redis=kept, record=publisher.stream_llm_inference)
    health = Health("api")
    watch = Watch(
        health=health,
        publisher=publisher,
        memory=memory,
        coordinator=coordinator,
        llm=llm,
        vpn=VPNManager(config.vpn_status),
    )
    sessions = Sessions(
        redis,
        idle_seconds=config.auth.refresh_idle_seconds,
        max_seconds=config.auth.refresh_max_seconds,
        max_sessions=config.auth.max_sessions,
        access_seconds=config.auth.access_seconds,
        grace_seconds=config.auth.refresh_grace_seconds,
    )
    auth = Auth(
        users,
        Passwords(users, config.auth.hash_calls, config.auth.hash_wait_seconds),
        tokens,
        sessions,
        Lockout(redis, config.lockout),
    )
    services = Services(
        health=health,
        auth=auth,
        rates=Rates(config.limits),
        memory=memory,
        coordinator=coordinator,
        llm=llm,
        artifacts=Artifacts(config.artifacts),
        watch=watch,
        request_log=request_log,
    )
    app = create_app(
        services, config.limits, REGISTRY, config.http, documentation=config.documentation
    )
    await publisher.start()
    try:
        # One that fails ends all: without the sessions, say, revoked tokens would still be taken.
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(serve(app, config.http, service, drain_seconds=_DRAIN_SECONDS))
            tasks.create_task(auth.watch(service, config.auth.revocations_seconds))
            tasks.create_task(watch.run(service))
    finally:
        await asyncio.gather(
            *(
                close_within(_CLOSE_SECONDS, closing)
                for closing in (
                    publisher.stop(),
                    llm.close(),
                    memory.close(),
                    kept.aclose(),
                    submissions.aclose(),
                    redis.aclose(),
                )
            )
        )


def users_of(config: ApiConfig) -> Users:
    """Read the users' credential; raises ConfigError."""
    return Users(read_credential(config.auth.users.credential))


def tokens_of(config: ApiConfig) -> AccessTokens:
    """Read the signing keys; raises ConfigError."""
    auth = config.auth
    keys = [read_credential(key.credential) for key in auth.signing_keys]
    return AccessTokens(keys, auth.issuer, auth.audience, auth.access_seconds)


def main(argv: Sequence[str] | None = None) -> int:
    """Console entry point."""
    return service_main("prime-spark-api", "The fleet's HTTP API.", ApiConfig, run, argv)


if __name__ == "__main__":
    sys.exit(main())

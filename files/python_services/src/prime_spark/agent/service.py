"""prime-spark-agent: executes the tasks that the dispatcher hands it."""

from __future__ import annotations

import asyncio
import sqlite3
import sys
from collections.abc import Sequence
from pathlib import Path

import structlog
from prometheus_client import REGISTRY

from prime_spark.agent.app import agent_app
from prime_spark.agent.auth import Callers
from prime_spark.agent.executor import Executor
from prime_spark.agent.fetch import AudioFetcher
from prime_spark.agent.handlers import Handlers
from prime_spark.agent.metrics import AgentMetrics
from prime_spark.agent.recognition import Recognizer
from prime_spark.agent.settings import AgentConfig
from prime_spark.agent.store import AnswerStore
from prime_spark.agent.synthesis import Synthesizer
from prime_spark.config import fail, service_main
from prime_spark.kafka.publisher import EventPublisher
from prime_spark.llm.router import LLMRouter
from prime_spark.memory.nas import NASError, NASStorage
from prime_spark.runtime.asgi import serve
from prime_spark.runtime.health import Health
from prime_spark.runtime.logs import configure_logging
from prime_spark.runtime.redis_client import redis_client
from prime_spark.runtime.service import Service, close_within, run_service
from prime_spark.runtime.threads import BoundedCalls
from prime_spark.tasks.heartbeat import Heartbeat
from prime_spark.tasks.results import Results

_log = structlog.get_logger(__name__)

_CHECK_SECONDS = 15.0
_LEASE_CHECK_SECONDS = 0.5
_CLOSE_SECONDS = 2.0


class Agent:
    """The agent's parts and their life. Make it on the event loop that runs it."""

    def __init__(self, config: AgentConfig, store: AnswerStore) -> None:
        self._config = config
        self._health = Health("agent")
        self._redis = None if config.redis is None else redis_client(config.redis)
        self._publisher: EventPublisher | None = None
        if config.kafka is not None:
            self._publisher = EventPublisher(
                config.kafka, f"prime-spark-agent-{config.name}", config.publisher, REGISTRY
            )
        self._router: LLMRouter | None = None
        if config.llm is not None:
            record = None if self._publisher is None else self._publisher.stream_llm_inference
            self._router = LLMRouter(config.llm, redis=self._redis, record=record)
        self._storage = NASStorage(config.nas.directory)
        self._calls = BoundedCalls("nas", config.nas.max_calls, config.nas.timeout_seconds)
        self._synthesizer = Synthesizer(config.synthesis)
        self._recognizer = Recognizer(config.recognition)
        self._fetcher = AudioFetcher(config.audio)
        handlers = Handlers(
            storage=self._storage,
            calls=self._calls,
            artifact_bytes=config.nas.artifact_bytes,
            synthesizer=self._synthesizer,
            recognizer=self._recognizer,
            fetcher=self._fetcher,
            max_audio_bytes=config.audio.max_bytes,
            router=self._router,
        ).by_type()
        self._heartbeat: Heartbeat | None = None
        if self._redis is not None:
            self._heartbeat = Heartbeat(
                self._redis,
                config.name,
                task_types=tuple(handlers),
                capacity=config.limits.capacity,
                interval=config.heartbeat.interval_seconds,
                ttl=config.heartbeat.ttl_seconds,
            )
        running = set() if self._heartbeat is None else self._heartbeat.running
        metrics = AgentMetrics(REGISTRY)
        results = None if self._redis is None else Results(self._redis)
        self._executor = Executor(
            handlers, store, config.limits, metrics, running=running, results=results
        )
        self._app = agent_app(
            self._health,
            self._executor,
            Callers(config.callers),
            metrics=metrics,
            max_request_bytes=config.limits.max_request_bytes,
            registry=REGISTRY,
            http=config.http,
        )
        for name in self._components():
            self._health.expect(name, essential=False, detail="not looked at yet")

    async def run(self, service: Service) -> None:
        """Serve until told to stop, and let the tasks under way end."""
        drained = asyncio.Event()
        if self._publisher is not None:
            await self._publisher.start()
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(serve(self._app, self._config.http, service))
                tasks.create_task(self._drain(service, drained))
                tasks.create_task(self._look(service))
                if self._heartbeat is not None:
                    tasks.create_task(self._heartbeat.run(service, drained))
                    tasks.create_task(self._give_up_when_taken_for_dead(self._heartbeat, service))
        finally:
            await close_within(_CLOSE_SECONDS, self._close())

    async def _drain(self, service: Service, drained: asyncio.Event) -> None:
        await service.stop.wait()
        await self._executor.stop(self._config.limits.drain_seconds)
        drained.set()

    async def _give_up_when_taken_for_dead(self, heartbeat: Heartbeat, service: Service) -> None:
        """End tasks that were given to another agent because ours was not heard of."""
        expired = True
        # Every heartbeat expires later than the one before, so no look is needed until then.
        while not await service.pause(max(heartbeat.believed_seconds, _LEASE_CHECK_SECONDS)):
            if heartbeat.expired and not expired:
                _log.error("no heartbeat taken in time, ending tasks", running=heartbeat.running)
                await self._executor.cut_off("the agent lost touch with the dispatcher's Redis")
            expired = heartbeat.expired

    def _components(self) -> list[str]:
        names = ["nas", "synthesis", "recognition"]
        names += ["redis"] if self._heartbeat is not None else []
        names += ["kafka"] if self._publisher is not None else []
        return names + (["llm"] if self._router is not None else [])

    async def _look(self, service: Service) -> None:
        """Keep the state of what tasks depend on for /health."""
        while True:
            await self._look_once()
            if await service.pause(_CHECK_SECONDS):
                return

    async def _look_once(self) -> None:
        for name, missing in (
            ("synthesis", self._synthesizer.missing()),
            ("recognition", self._recognizer.missing()),
        ):
            self._health.set(name, not missing, missing)
        try:
            await self._calls.run(self._storage.check)
        except (NASError, TimeoutError) as error:
            self._health.set("nas", False, str(error))
        else:
            self._health.set("nas", True)
        if self._heartbeat is not None:
            self._health.set("redis", not self._heartbeat.expired, self._heartbeat.detail)
        if self._publisher is not None:
            kafka = self._publisher.health()
            self._health.set("kafka", kafka.connected, kafka.detail)
        if self._router is not None:
            backends = await self._router.health()
            detail = "; ".join(f"{item.name}: {item.detail}" for item in backends)
            self._health.set("llm", any(item.ok for item in backends), detail)

    async def _close(self) -> None:
        await self._fetcher.close()
        if self._router is not None:
            await self._router.close()
        if self._publisher is not None:
            await self._publisher.stop()
        if self._redis is not None:
            await self._redis.aclose()


def run(config: AgentConfig) -> int:
    """Run the agent; return the exit status."""
    configure_logging("agent", config.log_level)
    try:
        store = AnswerStore(Path(config.state))
    except (OSError, sqlite3.Error) as error:
        fail(f"state {config.state}: {error}")

    async def main_task(service: Service) -> None:
        await Agent(config, store).run(service)

    try:
        return run_service(main_task)
    finally:
        store.close()


def main(argv: Sequence[str] | None = None) -> int:
    """Console entry point."""
    return service_main(
        "prime-spark-agent",
        "Execute voice and language tasks that the dispatcher hands over.",
        AgentConfig,
        run,
        argv,
    )


if __name__ == "__main__":
    sys.exit(main())

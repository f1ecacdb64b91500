"""What the API depends on, and how it is doing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Literal, TypeVar

import structlog
from pydantic import Field

from prime_spark.api.schema import Output
from prime_spark.kafka.publisher import EventPublisher
from prime_spark.llm.router import LLMRouter
from prime_spark.llm.types import LLMError
from prime_spark.memory.memory import Memory
from prime_spark.runtime.health import Health
from prime_spark.runtime.service import Service, within
from prime_spark.tasks.coordinator import AgentCoordinator, CoordinatorUnavailableError
from prime_spark.vpn import VPNManager, VPNStatusError

_log = structlog.get_logger(__name__)

T = TypeVar("T")

State = Literal["ok", "degraded", "down"]
# Of what the API itself depends on for its answers; the rest is the fleet's own state.
DEPENDENCIES = ("redis", "kafka", "timescale", "nas")
_TIERS = {"redis": 1, "nas": 2, "timescale": 3}
_CHECK_SECONDS = 6.0
_FRESH_SECONDS = 2.0
_LOOP_SECONDS = 10.0


class Subsystem(Output):
    """One thing the API depends on. `detail` is one line, empty while all is well."""

    status: State = Field(examples=["ok"])
    detail: str = Field(examples=[""])


class Kafka(Subsystem):
    """Events wait for Kafka in memory; what finds no room there is dropped and counted."""

    queued: int = Field(examples=[0])
    dropped: int = Field(examples=[0])


class Peer(Output):
    """One peer of this host's VPN. `handshake_seconds` is null where there was none."""

    name: str = Field(examples=["primecore1"])
    vpn_address: str = Field(examples=["10.8.0.11"])
    endpoint: str | None = Field(examples=["198.51.100.11:51820"])
    handshake_seconds: float | None = Field(examples=[42.0])
    rx_bytes: int = Field(examples=[1024])
    tx_bytes: int = Field(examples=[2048])
    healthy: bool = Field(examples=[True])


class Vpn(Subsystem):
    """The VPN as this host sees it."""

    peers: list[Peer]


class Agent(Output):
    """An agent that the dispatcher knows."""

    name: str = Field(examples=["spark-agent-1"])
    alive: bool = Field(examples=[True])
    running: int = Field(examples=[0], description="Tasks under way")
    capacity: int = Field(examples=[1])
    task_types: list[str] = Field(examples=[["voice_synthesis"]])


class Agents(Subsystem):
    """The agents and the queue. `dispatcher` is null while nobody hands out tasks."""

    agents: list[Agent]
    dispatcher: str | None = Field(examples=["control-pc-1"])
    queued: dict[str, int] = Field(examples=[{"voice_synthesis": 0}])


class Backend(Output):
    """A server of language models. Its circuit is open for a while after failures."""

    name: str = Field(examples=["spark-agent-1"])
    source: Literal["edge", "cloud", "cache"] = Field(examples=["edge"])
    ok: bool = Field(examples=[True])
    circuit: Literal["closed", "open", "half-open"] = Field(examples=["closed"])
    detail: str = Field(examples=["models: llama3.2:latest"])
    running: int = Field(examples=[0])
    waiting: int = Field(examples=[0])


class Llm(Subsystem):
    """The language models."""

    backends: list[Backend]


class Subsystems(Output):
    """Everything the API depends on."""

    redis: Subsystem
    kafka: Kafka
    timescale: Subsystem
    nas: Subsystem
    vpn: Vpn
    agents: Agents
    llm: Llm


class Watch:
    """Asks the subsystems how they are: at most every two seconds, however many want to know."""

    def __init__(
        self,
        *,
        health: Health,
        publisher: EventPublisher,
        memory: Memory,
        coordinator: AgentCoordinator,
        llm: LLMRouter,
        vpn: VPNManager,
    ) -> None:
        self._health = health
        self._publisher = publisher
        self._memory = memory
        self._coordinator = coordinator
        self._llm = llm
        self._vpn = vpn
        self._asking = asyncio.Lock()
        self._seen: Subsystems | None = None
        self._seen_at = float("-inf")
        for name in DEPENDENCIES:
            health.expect(name, essential=False)

    async def look(self) -> Subsystems:
        """Return the state of everything, at most `_FRESH_SECONDS` old. Never raises."""
        async with self._asking:
            if self._seen is None or time.monotonic() - self._seen_at >= _FRESH_SECONDS:
                self._seen = await self._ask()
                self._seen_at = time.monotonic()
                for name in DEPENDENCIES:
                    subsystem: Subsystem = getattr(self._seen, name)
                    ok = subsystem.status == "ok"
                    if self._health.set(name, ok, subsystem.detail):
                        _log.info("subsystem", name=name, status=subsystem.status)
            return self._seen

    async def run(self, service: Service) -> None:
        """Keep /health up to date until told to stop."""
        while True:
            await self.look()
            if await service.pause(_LOOP_SECONDS):
                return

    async def _ask(self) -> Subsystems:
        tiers, agents, llm = await asyncio.gather(
            _bounded(self._tiers, lambda why: dict.fromkeys(_TIERS, _down(why))),
            _bounded(self._agents, _no_agents),
            _bounded(self._llms, lambda why: Llm(status="down", detail=why, backends=[])),
        )
        return Subsystems(
            redis=tiers["redis"],
            kafka=self._kafka(),
            timescale=tiers["timescale"],
            nas=tiers["nas"],
            vpn=self._peers(),
            agents=agents,
            llm=llm,
        )

    async def _tiers(self) -> dict[str, Subsystem]:
        tiers = await self._memory.health()
        return {
            name: Subsystem(
                status="ok" if tiers[number].ok else "down", detail=tiers[number].reason
            )
            for name, number in _TIERS.items()
        }

    def _kafka(self) -> Kafka:
        state = self._publisher.health()
        status: State = "down" if not state.connected else "degraded" if state.detail else "ok"
        return Kafka(status=status, detail=state.detail, queued=state.queued, dropped=state.dropped)

    def _peers(self) -> Vpn:
        try:
            found = self._vpn.get_peer_status()
        except VPNStatusError as error:
            return Vpn(status="down", detail=str(error), peers=[])
        silent = [peer.name for peer in found if not peer.healthy]
        return Vpn(
            status=_status(len(silent), len(found)),
            detail=f"no recent handshake with {', '.join(silent)}" if silent else "",
            peers=[
                Peer(
                    name=peer.name,
                    vpn_address=peer.vpn_address,
                    endpoint=peer.endpoint,
                    handshake_seconds=peer.handshake_seconds,
                    rx_bytes=peer.rx_bytes,
                    tx_bytes=peer.tx_bytes,
                    healthy=peer.healthy,
                )
                for peer in found
            ],
        )

    async def _agents(self) -> Agents:
        try:
            known, queue = await asyncio.gather(
                self._coordinator.agents(), self._coordinator.health()
            )
        except CoordinatorUnavailableError as error:
            return _no_agents(str(error))
        dead = [agent.name for agent in known if not agent.alive]
        troubles = [] if queue.dispatcher else ["no dispatcher hands out tasks"]
        troubles += [f"no heartbeat from {', '.join(dead)}"] if dead else []
        troubles += [] if known else ["no agent is known"]
        status: State = "ok"
        if troubles:
            status = "degraded" if queue.dispatcher and len(dead) < len(known) else "down"
        return Agents(
            status=status,
            detail="; ".join(troubles),
            agents=[
                Agent(
                    name=agent.name,
                    alive=agent.alive,
                    running=len(agent.running),
                    capacity=agent.capacity,
                    task_types=list(agent.task_types),
                )
                for agent in known
            ],
            dispatcher=queue.dispatcher,
            queued=queue.queued,
        )

    async def _llms(self) -> Llm:
        try:
            found = await self._llm.health()
        except LLMError as error:
            return Llm(status="down", detail=str(error), backends=[])
        bad = [backend for backend in found if not backend.ok]
        return Llm(
            status=_status(len(bad), len(found)),
            detail="; ".join(f"{backend.name}: {backend.detail}" for backend in bad),
            backends=[
                Backend(
                    name=backend.name,
                    source=backend.source,
                    ok=backend.ok,
                    circuit=backend.circuit,
                    detail=backend.detail,
                    running=backend.running,
                    waiting=backend.waiting,
                )
                for backend in found
            ],
        )


def _status(bad: int, all_of_them: int) -> State:
    if not bad:
        return "ok"
    return "down" if bad == all_of_them else "degraded"


def _down(reason: str) -> Subsystem:
    return Subsystem(status="down", detail=reason)


def _no_agents(reason: str) -> Agents:
    return Agents(status="down", detail=reason, agents=[], dispatcher=None, queued={})


async def _bounded(ask: Callable[[], Awaitable[T]], without: Callable[[str], T]) -> T:
    """Return what `ask` says, or what is said without it when it takes too long."""
    try:
        return await within(_CHECK_SECONDS, ask())
    except TimeoutError as error:
        return without(str(error))

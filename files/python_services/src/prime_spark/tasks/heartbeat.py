"""An agent's heartbeats in Redis."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Sequence

import msgspec
import structlog
from redis.asyncio import Redis

from prime_spark import __version__
from prime_spark.runtime.redis_client import REDIS_ERRORS, describe_redis_error
from prime_spark.runtime.service import Service, within
from prime_spark.tasks.protocol import HeartbeatMessage, TaskType
from prime_spark.tasks.scripts import HEARTBEAT

_log = structlog.get_logger(__name__)


class Heartbeat:
    """Says every `interval` seconds that the agent lives; for `ttl` seconds that is believed.

    `running` are the ids of the tasks under way, kept up to date by the agent. Once `expired`,
    the dispatcher may have given these tasks to another agent: an agent that goes on with them
    risks that they are done twice.
    """

    def __init__(
        self,
        redis: Redis,
        name: str,
        *,
        task_types: Sequence[TaskType],
        capacity: int = 1,
        interval: float = 5.0,
        ttl: float = 15.0,
    ) -> None:
        self.running: set[str] = set()
        self.instance = secrets.token_hex(8)
        self._redis = redis
        self._key = HEARTBEAT + name
        self._task_types = tuple(task_types)
        self._capacity = capacity
        self._interval = interval
        self._ttl = ttl
        self._believed_until = float("-inf")
        self._ok = False
        self._detail = "no heartbeat sent yet"

    @property
    def expired(self) -> bool:
        """Whether the last heartbeat that Redis has taken has run out."""
        return time.monotonic() > self._believed_until

    @property
    def believed_seconds(self) -> float:
        """Seconds until the last heartbeat that Redis has stored expires."""
        return self._believed_until - time.monotonic()

    @property
    def detail(self) -> str:
        """Why the last heartbeat was not taken; empty when it was."""
        return self._detail

    async def run(self, service: Service, until: asyncio.Event | None = None) -> None:
        """Send heartbeats until `until`, then delete the key.

        By default that is when the service is told to stop. An agent that finishes its tasks first
        deletes it after that: one that is gone loses its tasks to the others.
        """
        until = until or service.stop
        while not until.is_set():
            service.beat("heartbeat")
            await self.send()
            pause = self._interval if self._ok else min(1.0, self._interval)
            with contextlib.suppress(TimeoutError):
                await within(pause, until.wait())
        with contextlib.suppress(*REDIS_ERRORS):
            await self._redis.delete(self._key)
        self._believed_until = float("-inf")

    async def send(self) -> bool:
        """Send one heartbeat; return whether Redis has taken it."""
        heartbeat = HeartbeatMessage(
            instance=self.instance,
            task_types=self._task_types,
            capacity=self._capacity,
            running=tuple(sorted(self.running)),
            version=__version__,
        )
        # Counted from before it is sent: Redis counts from later on.
        until = time.monotonic() + self._ttl
        try:
            await self._redis.set(
                self._key, msgspec.json.encode(heartbeat), px=int(self._ttl * 1000)
            )
        except REDIS_ERRORS as error:
            if self._ok:
                _log.warning("redis unreachable", error=describe_redis_error(error))
            self._ok, self._detail = False, describe_redis_error(error)
        else:
            self._ok, self._detail, self._believed_until = True, "", until
        return self._ok

"""What agents have completed, in Redis, so that it outlives them."""

from __future__ import annotations

from typing import cast

import msgspec
from redis.asyncio import Redis

from prime_spark.tasks.protocol import ExecuteAnswer

PREFIX = "agent-done:"

_KEEP_SECONDS = 24 * 3600


class Results:
    """The moment a task is completed is the moment its answer is here: once, by one agent.

    Every method may raise one of REDIS_ERRORS.
    """

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def commit(self, answer: ExecuteAnswer) -> ExecuteAnswer:
        """Keep the answer of a completed task; return it, or the one that was here before."""
        key = PREFIX + answer.task_id
        data = msgspec.json.encode(answer)
        if await self._redis.set(key, data, nx=True, ex=_KEEP_SECONDS):
            return answer
        return await self.find(answer.task_id) or answer

    async def find(self, task_id: str) -> ExecuteAnswer | None:
        """Return the answer of a task that an agent has completed."""
        data = cast("bytes | None", await self._redis.get(PREFIX + task_id))
        if data is None:
            return None
        try:
            return msgspec.json.decode(data, type=ExecuteAnswer)
        except msgspec.DecodeError:
            return None

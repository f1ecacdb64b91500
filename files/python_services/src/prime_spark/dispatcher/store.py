"""The dispatcher's side of the tasks in Redis: the lease, and changes under its fence."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Protocol, cast

import msgspec
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from prime_spark.tasks import scripts
from prime_spark.tasks.coordinator import decode_heartbeat
from prime_spark.tasks.protocol import TASK_TYPES, HeartbeatMessage, Priority, TaskType

# So many of the tasks that wait are looked at for one that an agent may take: those before it
# have been tried there, and wait for another agent.
_WINDOW = 32


class OvertakenError(Exception):
    """Another dispatcher has taken the lease since."""


class Attempt(msgspec.Struct, frozen=True):
    """A task given to an agent, for the `number`th time. `tried` are the agents that failed."""

    task_id: str
    task_type: TaskType
    priority: Priority
    payload: bytes
    number: int
    agent: str
    instance: str
    tried: tuple[str, ...]


class Waiting(msgspec.Struct, frozen=True):
    """A task that waits, and its place: the lowest score is next."""

    task_id: str
    task_type: TaskType
    score: float


class View(msgspec.Struct, frozen=True):
    """Heartbeats, the first waiting tasks of each type, and the ids that are under way.

    `delayed` counts the tasks that are tried again later.
    """

    heartbeats: dict[str, HeartbeatMessage]
    queues: dict[TaskType, list[Waiting]]
    active: set[str]
    delayed: int

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do before another task is submitted."""
        return not (self.active or self.delayed or any(self.queues.values()))


class _Script(Protocol):
    async def __call__(self, *, keys: Sequence[str], args: Sequence[Any]) -> Any: ...


class Lease:
    """The right to dispatch, held in Redis by one process at a time."""

    def __init__(self, redis: Redis, holder: str, seconds: float) -> None:
        self.holder = holder
        self.seconds = seconds
        self._redis = redis
        self._acquire: _Script = redis.register_script(scripts.ACQUIRE)
        self._renew: _Script = redis.register_script(scripts.RENEW)
        self._release: _Script = redis.register_script(scripts.RELEASE)
        self._valid_until = float("-inf")

    @property
    def valid(self) -> bool:
        """Whether nobody else can hold the lease: counted from before Redis was asked."""
        return time.monotonic() < self._valid_until

    async def acquire(self) -> int | None:
        """Take the lease; return the fence, or None while another holds it."""
        until = time.monotonic() + self.seconds
        fence = await self._acquire(keys=[scripts.LEASE, scripts.FENCE], args=self._arguments())
        if not fence:
            return None
        self._valid_until = until
        return int(fence)

    async def renew(self, fence: int) -> None:
        """Hold the lease for longer; raises OvertakenError when another has had it since."""
        until = time.monotonic() + self.seconds
        keys = [scripts.LEASE, scripts.FENCE]
        if not await self._renew(keys=keys, args=[*self._arguments(), fence]):
            self._valid_until = float("-inf")
            raise OvertakenError("another dispatcher has taken over")
        self._valid_until = until

    async def release(self) -> None:
        """Let another have it at once."""
        self._valid_until = float("-inf")
        await self._release(keys=[scripts.LEASE], args=[self.holder])

    async def current_holder(self) -> str | None:
        """Return who holds the lease."""
        holder = cast("bytes | None", await self._redis.get(scripts.LEASE))
        return holder.decode() if holder else None

    def _arguments(self) -> list[str | int]:
        return [self.holder, int(self.seconds * 1000)]


class TaskStore:
    """Changes to tasks by the holder of `fence`; every change may raise OvertakenError."""

    def __init__(self, redis: Redis, fence: int, keep_seconds: int) -> None:
        self._redis = redis
        self._fence = fence
        self._keep_seconds = keep_seconds
        self._seen = time.monotonic()
        self._announce: _Script = redis.register_script(scripts.ANNOUNCE)
        self._assign: _Script = redis.register_script(scripts.ASSIGN)
        self._started: _Script = redis.register_script(scripts.STARTED)
        self._finish: _Script = redis.register_script(scripts.FINISH)
        self._again: _Script = redis.register_script(scripts.AGAIN)
        self._due: _Script = redis.register_script(scripts.DUE)

    async def announce(self, agents: Sequence[str]) -> None:
        """Publish the names of the agents."""
        await self._run(self._announce, [scripts.FENCE, scripts.AGENTS], *agents)

    async def look(self, agents: Sequence[str]) -> View:
        """Return what there is to dispatch."""
        async with self._redis.pipeline(transaction=False) as pipeline:
            pipeline.hkeys(scripts.ACTIVE)
            pipeline.zcard(scripts.DELAYED)
            for name in agents:
                pipeline.get(scripts.HEARTBEAT + name)
            for task_type in TASK_TYPES:
                pipeline.zrange(scripts.QUEUE + task_type, 0, _WINDOW - 1, withscores=True)
            active, delayed, *answers = await pipeline.execute()
        heartbeats = {
            name: heartbeat
            for name, data in zip(agents, answers, strict=False)
            if (heartbeat := decode_heartbeat(data)) is not None
        }
        queues = {
            task_type: [Waiting(item.decode(), task_type, score) for item, score in answer]
            for task_type, answer in zip(TASK_TYPES, answers[len(agents) :], strict=True)
        }
        return View(heartbeats, queues, {identifier.decode() for identifier in active}, delayed)

    async def attempt(self, task_id: str) -> Attempt | None:
        """Return the attempt that a task is at, or None when there is no such task."""
        fields = ["type", "priority", "payload", "attempts", "agent", "instance", "tried"]
        task = cast("list[bytes | None]", await self._redis.hmget(scripts.TASK + task_id, fields))
        texts = [(value or b"").decode() for value in task]
        if not texts[0]:
            return None
        return Attempt(
            task_id,
            cast("TaskType", texts[0]),
            cast("Priority", texts[1]),
            task[2] or b"{}",
            int(texts[3] or 0),
            texts[4],
            texts[5],
            _names(task[6]),
        )

    async def tried(self, task_id: str) -> tuple[str, ...]:
        """Return the agents that have failed at a task."""
        data = cast("bytes | None", await self._redis.hget(scripts.TASK + task_id, "tried"))
        return _names(data)

    async def assign(self, waiting: Waiting, agent: str, instance: str) -> Attempt | None:
        """Give a task to an agent; None when it does not wait any more."""
        task_id = waiting.task_id
        keys = [scripts.FENCE, scripts.TASK + task_id, scripts.QUEUE + waiting.task_type]
        keys.append(scripts.ACTIVE)
        number = await self._run(self._assign, keys, task_id, agent, instance, time.time())
        return await self.attempt(task_id) if number else None

    async def started(self, attempt: Attempt) -> None:
        """The agent has the task."""
        keys = [scripts.FENCE, scripts.TASK + attempt.task_id]
        await self._run(self._started, keys, attempt.task_id, attempt.number, time.time())

    async def complete(self, attempt: Attempt, result: bytes) -> bool:
        """The task is COMPLETED with `result` (JSON); False when it had ended otherwise before."""
        return await self._end(attempt, "COMPLETED", "result", result)

    async def fail(self, attempt: Attempt, reason: str) -> bool:
        """The task has FAILED."""
        return await self._end(attempt, "FAILED", "error", reason)

    async def again(
        self, attempt: Attempt, reason: str, *, seconds: float, counted: bool, tried: Sequence[str]
    ) -> bool:
        """The task is PENDING again, and taken up in `seconds`."""
        keys = [scripts.FENCE, scripts.TASK + attempt.task_id, scripts.ACTIVE, scripts.DELAYED]
        arguments = [attempt.task_id, attempt.number, time.time(), seconds, reason]
        return bool(
            await self._run(
                self._again, keys, *arguments, ",".join(sorted(set(tried))), int(counted)
            )
        )

    async def due(self, reason: str) -> int:
        """Queue what is due, fail with `reason` what has waited too long; return how many."""
        keys = [scripts.FENCE, scripts.DELAYED, scripts.DEADLINES, scripts.CLOCK]
        now = time.monotonic()
        arguments = [time.time(), self._keep_seconds, reason, scripts.TASK, scripts.QUEUE]
        count = int(await self._run(self._due, keys, *arguments, now - self._seen))
        self._seen = now
        return count

    async def wait(self, redis: Redis, seconds: float) -> None:
        """Wait for a task to be submitted, `seconds` at most, while there is none.

        `redis` has to wait for longer than that for an answer.
        """
        await redis.bzpopmin(scripts.WAKE, timeout=seconds)
        self._seen = time.monotonic()  # no task has waited meanwhile

    async def _end(self, attempt: Attempt, state: str, field: str, value: str | bytes) -> bool:
        keys = [scripts.FENCE, scripts.TASK + attempt.task_id, scripts.ACTIVE, scripts.DEADLINES]
        arguments = [attempt.task_id, attempt.number, time.time(), self._keep_seconds, state]
        return bool(await self._run(self._finish, keys, *arguments, field, value))

    async def _run(self, script: _Script, keys: Sequence[str], *arguments: Any) -> Any:
        try:
            return await script(keys=keys, args=[self._fence, *arguments])
        except ResponseError as error:
            if str(error).startswith(scripts.FENCED):
                raise OvertakenError(str(error)) from error
            raise


def _names(data: bytes | None) -> tuple[str, ...]:
    return tuple(data.decode().split(",")) if data else ()

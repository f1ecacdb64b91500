"""Takes tasks for the agents and tells what has become of them. The dispatcher does the rest."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, cast

import msgspec
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from prime_spark.events import new_event_id
from prime_spark.runtime import finite_json
from prime_spark.runtime.redis_client import REDIS_ERRORS, describe_redis_error
from prime_spark.tasks import scripts
from prime_spark.tasks.protocol import (
    PRIORITIES,
    TASK_TYPES,
    AgentState,
    HeartbeatMessage,
    Priority,
    State,
    TaskId,
    TaskStatus,
    TaskType,
)
from prime_spark.tasks.settings import CoordinatorConfig

_MAX_OWNER_CHARS = 128
# What Redis needs for a task beside its payload, generously.
_TASK_BYTES = 4096
# Redis brings its file to the disk every second. Each wait is shorter than the client's own limit.
_SYNCS, _SYNC_MILLISECONDS = 10, 500


class TaskError(ValueError):
    """The task is not one; the message names the field."""


class TaskConflictError(Exception):
    """There is another task with this id."""


class QueueFullError(Exception):
    """So many tasks of this type wait already that no more are taken."""


class NoRoomError(Exception):
    """Redis has no room for the task."""


class CoordinatorUnavailableError(Exception):
    """Redis, which keeps the tasks, does not answer; the message says why."""


class CoordinatorHealth(msgspec.Struct, frozen=True):
    """`dispatcher` holds the lease, None while nobody dispatches; `queued` counts by type."""

    dispatcher: str | None
    queued: dict[str, int]
    delayed: int
    active: int


class AgentCoordinator:
    """The tasks, as the API sees them. Every method may raise CoordinatorUnavailableError."""

    def __init__(
        self,
        redis: Redis,
        settings: CoordinatorConfig = CoordinatorConfig(),  # noqa: B008 (immutable)
    ) -> None:
        self._redis = redis
        self._settings = settings
        self._submit = redis.register_script(scripts.SUBMIT)

    async def submit_task(
        self,
        task_type: str,
        priority: str,
        payload: Mapping[str, Any],
        *,
        owner: str,
        task_id: str | None = None,
    ) -> str:
        """Queue a task and return its id, a new one unless `task_id` is given.

        The task is on Redis' disk then: a power cut does not take it. Submitting the same again
        under the same id changes nothing and returns that id. Raises
        TaskError, TaskConflictError, QueueFullError or NoRoomError.
        """
        settings = self._settings
        if task_type not in TASK_TYPES:
            raise TaskError(f"task_type {task_type!r} is not one of {', '.join(TASK_TYPES)}")
        if priority not in PRIORITIES:
            raise TaskError(f"priority {priority!r} is not one of {', '.join(PRIORITIES)}")
        if not 1 <= len(owner) <= _MAX_OWNER_CHARS:
            raise TaskError(f"owner has {len(owner)} characters, not 1 to {_MAX_OWNER_CHARS}")
        identifier = _checked_id(task_id) if task_id is not None else new_event_id().hex
        data = _encoded(payload)
        if len(data) > settings.max_payload_bytes:
            raise TaskError(
                f"payload has {len(data)} bytes, at most {settings.max_payload_bytes} are allowed"
            )
        content = msgspec.json.encode([task_type, priority, owner, msgspec.Raw(data)])
        now = time.time()
        fields: dict[str, str | bytes | float] = {
            "type": task_type,
            "priority": priority,
            "owner": owner,
            "payload": data,
            "state": "PENDING",
            "attempts": 0,
            "created": now,
            "updated": now,
        }
        keys = [
            scripts.TASK + identifier,
            scripts.QUEUE + task_type,
            scripts.SEQUENCE,
            scripts.DEADLINES,
            scripts.WAKE,
        ]
        arguments: list[str | bytes | float] = [
            identifier,
            hashlib.sha256(content).hexdigest(),
            settings.max_queued,
            PRIORITIES.index(priority),
            settings.queue_seconds,
            len(data) + _TASK_BYTES,
        ]
        arguments += [item for pair in fields.items() for item in pair]
        try:
            async with self._redis.client() as connection:
                answer = await self._submit(keys=keys, args=arguments, client=connection)
                if answer in {b"new", b"known"}:
                    await _on_disk(connection)
        except REDIS_ERRORS as error:
            raise CoordinatorUnavailableError(describe_redis_error(error)) from error
        if answer == b"conflict":
            raise TaskConflictError(f"there is another task with the id {identifier}")
        if answer == b"full":
            raise QueueFullError(f"{settings.max_queued} {task_type} tasks wait already")
        if answer == b"room":
            raise NoRoomError("redis has no room left but what the fleet itself needs")
        return identifier

    async def get_task_status(self, task_id: str) -> TaskStatus | None:
        """Return the task, or None when there is none with this id (any more)."""
        try:
            task = await self._redis.hgetall(scripts.TASK + _checked_id(task_id))
        except REDIS_ERRORS as error:
            raise CoordinatorUnavailableError(describe_redis_error(error)) from error
        return _status(task_id, cast("dict[bytes, bytes]", task)) if task else None

    async def agents(self) -> list[AgentState]:
        """Return the agents that the dispatcher knows, by name."""
        try:
            members = cast("set[bytes]", await self._redis.smembers(scripts.AGENTS))
            names = sorted(name.decode() for name in members)
            heartbeats = (
                await self._redis.mget([scripts.HEARTBEAT + name for name in names])
                if names
                else []
            )
        except REDIS_ERRORS as error:
            raise CoordinatorUnavailableError(describe_redis_error(error)) from error
        return [
            _agent_state(name, decode_heartbeat(cast("bytes | None", data)))
            for name, data in zip(names, heartbeats, strict=True)
        ]

    async def health(self) -> CoordinatorHealth:
        """Return who dispatches, and how many tasks wait or are under way."""
        try:
            async with self._redis.pipeline(transaction=False) as pipeline:
                pipeline.get(scripts.LEASE)
                pipeline.zcard(scripts.DELAYED)
                pipeline.hlen(scripts.ACTIVE)
                for task_type in TASK_TYPES:
                    pipeline.zcard(scripts.QUEUE + task_type)
                holder, delayed, active, *queued = await pipeline.execute()
        except REDIS_ERRORS as error:
            raise CoordinatorUnavailableError(describe_redis_error(error)) from error
        return CoordinatorHealth(
            holder.decode() if holder else None,
            dict(zip(TASK_TYPES, queued, strict=True)),
            delayed,
            active,
        )


def decode_heartbeat(data: bytes | None) -> HeartbeatMessage | None:
    """Return the heartbeat in `data`; None also for one that cannot be read."""
    if data is None:
        return None
    try:
        return msgspec.json.decode(data, type=HeartbeatMessage)
    except msgspec.DecodeError:
        return None


async def _on_disk(connection: Redis) -> None:
    """Wait until what this connection has written is on Redis' disk: a second, usually."""
    try:
        for _ in range(_SYNCS):
            local, _ = await connection.waitaof(1, 0, _SYNC_MILLISECONDS)
            if local:
                return
    except ResponseError as error:
        if "appendonly is disabled" not in str(error):
            raise
        reason = "appendonly is off in Redis: tasks would be lost when it ends"
        raise CoordinatorUnavailableError(reason) from error
    raise CoordinatorUnavailableError(
        "Redis has the task, but not on the disk yet; with a task_id it is safe to submit it again"
    )


def _checked_id(task_id: str) -> str:
    try:
        return msgspec.convert(task_id, TaskId)
    except msgspec.ValidationError:
        raise TaskError(
            f"task_id {task_id[:80]!r} is not allowed: 1 to 64 letters, digits and . _ - (first "
            "a letter or digit)"
        ) from None


def _encoded(payload: Mapping[str, Any]) -> bytes:
    try:
        return finite_json.encode(dict(payload), order="deterministic")
    except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError) as error:
        raise TaskError(f"payload is not JSON: {error}") from error


def _status(task_id: str, task: dict[bytes, bytes]) -> TaskStatus:
    def text(field: bytes) -> str | None:
        return task[field].decode() if task.get(field) else None

    def moment(field: bytes) -> datetime | None:
        return datetime.fromtimestamp(float(task[field]), UTC) if task.get(field) else None

    created = moment(b"created") or datetime.fromtimestamp(0, UTC)
    return TaskStatus(
        task_id=task_id,
        task_type=cast("TaskType", text(b"type")),
        priority=cast("Priority", text(b"priority")),
        owner=text(b"owner") or "",
        state=cast("State", text(b"state")),
        attempts=int(task.get(b"attempts", b"0")),
        agent=text(b"agent"),
        result=msgspec.json.decode(task[b"result"]) if task.get(b"result") else None,
        error=text(b"error"),
        created=created,
        updated=moment(b"updated") or created,
        finished=moment(b"finished"),
    )


def _agent_state(name: str, heartbeat: HeartbeatMessage | None) -> AgentState:
    if heartbeat is None:
        return AgentState(name, alive=False)
    return AgentState(
        name,
        alive=True,
        task_types=heartbeat.task_types,
        capacity=heartbeat.capacity,
        running=heartbeat.running,
        version=heartbeat.version,
    )

"""What the API, the dispatcher and the agents say to each other about tasks."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal, TypeAlias, get_args

import msgspec

from prime_spark.events import Name

TaskType: TypeAlias = Literal["voice_recognition", "voice_synthesis", "llm"]
Priority: TypeAlias = Literal["HIGH", "NORMAL", "LOW"]
State: TypeAlias = Literal["PENDING", "ASSIGNED", "IN_PROGRESS", "COMPLETED", "FAILED"]

TASK_TYPES: tuple[TaskType, ...] = get_args(TaskType)
PRIORITIES: tuple[Priority, ...] = get_args(Priority)

TASK_ID = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
TaskId = Annotated[str, msgspec.Meta(pattern=rf"^{TASK_ID}\Z")]


class ExecuteRequest(msgspec.Struct, frozen=True):
    """Body of the agent's `POST /api/execute`.

    The agent ends the task by itself `timeout_seconds` after it began. The same `task_id` again
    means the same task: the request joins the one under way, or gets the answer of the one that
    was completed. `attempt` counts the agents' attempts, from 1.
    """

    task_id: TaskId
    task_type: TaskType
    priority: Priority
    payload: dict[str, Any]
    attempt: Annotated[int, msgspec.Meta(ge=1)] = 1
    timeout_seconds: Annotated[float, msgspec.Meta(gt=0)] = 600.0


class ExecuteAnswer(msgspec.Struct, frozen=True, omit_defaults=True):
    """The agent's answer once the task has ended (status 200).

    A failure is tried again, on another agent where there is one, unless `retryable` is False:
    the task itself is to blame then. With `unable` this agent lacks what it takes, an engine say:
    only another agent is asked.
    """

    task_id: TaskId
    status: Literal["completed", "failed"]
    result: Any = None
    error: str | None = None
    retryable: bool = True
    unable: bool = False


class HeartbeatMessage(msgspec.Struct, frozen=True):
    """A heartbeat. `instance` is new with each start of the agent's process."""

    instance: str
    task_types: tuple[TaskType, ...]
    capacity: Annotated[int, msgspec.Meta(ge=1)]
    running: tuple[str, ...]
    version: str


class AgentState(msgspec.Struct, frozen=True):
    """An agent as the fleet sees it; without a recent heartbeat it is not alive."""

    name: Name
    alive: bool
    task_types: tuple[TaskType, ...] = ()
    capacity: int = 0
    running: tuple[str, ...] = ()
    version: str | None = None


class TaskStatus(msgspec.Struct, frozen=True):
    """A task. `error` is the reason of FAILED, or of the last attempt while it is tried again."""

    task_id: str
    task_type: TaskType
    priority: Priority
    owner: str
    state: State
    attempts: int
    agent: str | None
    result: Any
    error: str | None
    created: datetime
    updated: datetime
    finished: datetime | None

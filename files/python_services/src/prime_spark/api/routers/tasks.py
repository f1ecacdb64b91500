"""Tasks for the agents: hand them in, see what becomes of them, fetch what they made."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Path, Request, Response
from pydantic import Field, JsonValue, StringConstraints

from prime_spark.api.artifacts import ArtifactsUnavailableError, NoArtifactError
from prime_spark.api.audit import audit
from prime_spark.api.auth.service import Caller
from prime_spark.api.authorization import SECURED, Reader, Writer
from prime_spark.api.dependencies import services_of
from prime_spark.api.errors import (
    GUARDED,
    ApiError,
    invalid,
    no_room,
    not_found,
    problems,
    unavailable,
)
from prime_spark.api.schema import Input, Output
from prime_spark.api.strict_json import StrictJsonRoute
from prime_spark.tasks.coordinator import (
    CoordinatorUnavailableError,
    NoRoomError,
    QueueFullError,
    TaskConflictError,
    TaskError,
)
from prime_spark.tasks.payloads import PAYLOADS, PayloadError, check_payload
from prime_spark.tasks.protocol import TASK_ID, Priority, State, TaskStatus, TaskType

router = APIRouter(prefix="/api/tasks", tags=["tasks"], route_class=StrictJsonRoute)

ID_PATTERN = f"^{TASK_ID}$"
TaskIdPath = Annotated[str, Path(pattern=ID_PATTERN, examples=["018f3a2b4c5d7e6f"])]


# The structs that the agents decode payloads into are the document's too.
_PAYLOAD_TYPES = tuple(PAYLOADS.values())
PAYLOAD_REFERENCES: list[JsonValue] = [
    {"$ref": f"#/components/schemas/{kind.__name__}"} for kind in _PAYLOAD_TYPES
]


def payload_schemas() -> dict[str, Any]:
    """Return the schemas of the payloads, for the document."""
    _, schemas = msgspec.json.schema_components(
        _PAYLOAD_TYPES, ref_template="#/components/schemas/{name}"
    )
    for schema in schemas.values():
        _translate(schema)
    return schemas


def _translate(schema: Any) -> None:
    """Let patterns end as in JSON Schema: what Python calls \\Z is $ there."""
    if isinstance(schema, dict):
        if isinstance(pattern := schema.get("pattern"), str):
            schema["pattern"] = pattern.removesuffix(r"\Z") + "$" * pattern.endswith(r"\Z")
        for value in schema.values():
            _translate(value)
    elif isinstance(schema, list):
        for value in schema:
            _translate(value)


class Submit(Input):
    """A task. The same again under the same `task_id` is the same task, not another one."""

    task_type: TaskType
    priority: Priority = "NORMAL"
    payload: dict[str, Any] = Field(
        description="Input of the task type", json_schema_extra={"anyOf": PAYLOAD_REFERENCES}
    )
    task_id: Annotated[str, StringConstraints(pattern=ID_PATTERN)] | None = Field(
        default=None, description="Generated if omitted"
    )


class Submitted(Output):
    """The task's id, to ask with."""

    task_id: str = Field(examples=["018f3a2b4c5d7e6f"])


class Task(Output):
    """A task as it stands. `result` once it is COMPLETED, `error` once it has FAILED."""

    task_id: str = Field(examples=["018f3a2b4c5d7e6f"])
    task_type: TaskType
    priority: Priority
    owner: str = Field(examples=["alice"])
    status: State = Field(examples=["COMPLETED"])
    attempts: int = Field(examples=[1])
    agent: str | None = Field(examples=["spark-agent-1"])
    result: Any = Field(examples=[{"artifact": "artifacts/voice/task-018f3a2b4c5d7e6f.wav"}])
    error: str | None = Field(examples=[None])
    created: datetime
    updated: datetime
    finished: datetime | None


_EXAMPLE = {
    "task_type": "voice_synthesis",
    "priority": "HIGH",
    "payload": {"text": "go forward ten meters"},
}


@router.post(
    "/submit",
    summary="Submit a task",
    responses=problems(*GUARDED, 400, 409, 422, 503, 507),
    openapi_extra={
        **SECURED,
        "requestBody": {"content": {"application/json": {"example": _EXAMPLE}}},
    },
)
async def submit(request: Request, body: Submit, caller: Writer) -> Submitted:
    """Queue a task for the agents. It is kept until it ends, whatever restarts meanwhile."""
    try:
        check_payload(body.task_type, body.payload)
    except PayloadError as error:
        raise invalid("body.payload", str(error)) from None
    try:
        task_id = await services_of(request).coordinator.submit_task(
            body.task_type, body.priority, body.payload, owner=caller.name, task_id=body.task_id
        )
    except TaskError as error:
        raise invalid("body.payload", str(error)) from None
    except TaskConflictError as error:
        raise ApiError(409, "conflict", str(error)) from None
    except QueueFullError as error:
        raise unavailable("the queue", str(error), retry_after=30) from None
    except NoRoomError as error:
        raise no_room(f"{error}: try again when tasks have ended") from None
    except CoordinatorUnavailableError as error:
        raise unavailable("redis", str(error)) from None
    audit(request, "task_submit", task_id=task_id, task_type=body.task_type)
    return Submitted(task_id=task_id)


@router.get(
    "/{task_id}",
    summary="Get the status of a task",
    responses=problems(*GUARDED, 404, 422, 503, e404="there is no task 018f3a2b4c5d7e6f"),
    openapi_extra=SECURED,
)
async def status(request: Request, task_id: TaskIdPath, caller: Reader) -> Task:
    """Return a task of one's own; an admin sees everybody's."""
    task = await _task(request, task_id, caller)
    return Task(
        task_id=task.task_id,
        task_type=task.task_type,
        priority=task.priority,
        owner=task.owner,
        status=task.state,
        attempts=task.attempts,
        agent=task.agent,
        result=task.result,
        error=task.error,
        created=task.created,
        updated=task.updated,
        finished=task.finished,
    )


@router.get(
    "/{task_id}/artifact",
    summary="Download the file that a task made",
    response_class=Response,
    responses={
        200: {
            "description": "The file",
            "content": {
                kind: {"schema": {"type": "string", "format": "binary"}}
                for kind in ("audio/wav", "application/octet-stream")
            },
        },
        **problems(
            *GUARDED, 404, 409, 422, 503, e409="the task is IN_PROGRESS", e404="it left no file"
        ),
    },
    openapi_extra=SECURED,
)
async def artifact(request: Request, task_id: TaskIdPath, caller: Reader) -> Response:
    """Return the file of a COMPLETED task, a WAV say; 409 while it is not completed."""
    task = await _task(request, task_id, caller)
    if task.state != "COMPLETED":
        raise ApiError(409, "not_completed", f"the task {task_id} is {task.state}")
    try:
        found = await services_of(request).artifacts.read(task.result)
    except NoArtifactError as error:
        raise not_found(f"task {task_id}: {error}") from None
    except ArtifactsUnavailableError as error:
        raise unavailable("nas", str(error)) from None
    headers = {"Content-Disposition": f'attachment; filename="{found.name}"'}
    return Response(found.data, headers=headers, media_type=found.content_type)


async def _task(request: Request, task_id: str, caller: Caller) -> TaskStatus:
    """Return the task; somebody else's is as if it were not there."""
    try:
        task = await services_of(request).coordinator.get_task_status(task_id)
    except TaskError as error:
        raise invalid("path.task_id", str(error)) from None
    except CoordinatorUnavailableError as error:
        raise unavailable("redis", str(error)) from None
    if task is None or (task.owner != caller.name and caller.role != "admin"):
        raise not_found(f"there is no task {task_id}")
    return task

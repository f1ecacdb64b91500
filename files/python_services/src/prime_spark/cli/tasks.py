"""`prime-spark tasks`: work for the agents."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer

from prime_spark.cli.client import Client
from prime_spark.cli.errors import CliError
from prime_spark.cli.output import Output
from prime_spark.cli.state import state_of
from prime_spark.tasks.protocol import TASK_TYPES

app = typer.Typer(help="Submit tasks to agents and read the results.", no_args_is_help=True)

TaskId = Annotated[str, typer.Argument(help="What `tasks submit` printed.")]
_ENDED = {"COMPLETED", "FAILED"}
_POLL_SECONDS = 0.5


@app.command()
def submit(
    context: typer.Context,
    task_type: Annotated[str, typer.Argument(help=", ".join(TASK_TYPES))],
    payload: Annotated[
        str, typer.Argument(help='JSON, such as \'{"text": "hello"}\', or just the text.')
    ],
    *,
    priority: Annotated[str, typer.Option(help="HIGH, NORMAL or LOW")] = "NORMAL",
    task_id: Annotated[str | None, typer.Option(help="A repeated id names the same task.")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until it has ended.")] = False,
    wait_seconds: Annotated[float, typer.Option(min=1, help="Wait that long at most.")] = 600.0,
) -> None:
    """Submit a task and print its id."""
    state = state_of(context)
    client = state.client()
    body: dict[str, Any] = {
        "task_type": task_type,
        "priority": priority,
        "payload": _payload(task_type, payload),
    }
    if task_id is not None:
        body["task_id"] = task_id
    submitted = client.ask("POST", "/api/tasks/submit", json=body).json()
    if wait:
        _show(state.output, _wait(client, submitted["task_id"], wait_seconds))
    else:
        state.output.show(submitted, submitted["task_id"])


@app.command()
def status(
    context: typer.Context,
    task_id: TaskId,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until it has ended.")] = False,
    wait_seconds: Annotated[float, typer.Option(min=1, help="Wait that long at most.")] = 600.0,
) -> None:
    """Show the status of a task; exits with 1 when it has failed."""
    state = state_of(context)
    client = state.client()
    _show(state.output, _wait(client, task_id, wait_seconds) if wait else _status(client, task_id))


@app.command()
def artifact(
    context: typer.Context,
    task_id: TaskId,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="By default the name that the server gives."),
    ] = None,
) -> None:
    """Download the file that a task has made, such as a WAV file."""
    state = state_of(context)
    answer = state.client().ask("GET", f"/api/tasks/{quote(task_id, safe='')}/artifact")
    target = output or Path(_name(answer.headers.get("Content-Disposition", "")) or task_id)
    try:
        target.write_bytes(answer.content)
    except OSError as error:
        raise CliError("file", f"{target}: {error.strerror}", status=2) from error
    size = len(answer.content)
    found = {
        "task_id": task_id,
        "file": str(target),
        "bytes": size,
        "content_type": answer.headers.get("Content-Type"),
    }
    state.output.show(found, f"Wrote {size} bytes to {target}.")


def _payload(task_type: str, text: str) -> dict[str, Any]:
    """Return JSON as it is; a plain text as what the task type says or asks."""
    if task_type not in TASK_TYPES:
        remedy = f"It is one of {', '.join(TASK_TYPES)}."
        raise CliError("usage", f"There is no task type {task_type}.", remedy, status=2)
    try:
        parsed = json.loads(text)
    except ValueError:
        parsed = None
    if isinstance(parsed, dict):
        return parsed
    fields = {"voice_synthesis": "text", "llm": "prompt"}
    if task_type not in fields or text.lstrip().startswith("{"):
        raise CliError(
            "usage", "The payload is not a JSON object.", 'Such as \'{"text": "hello"}\'.', status=2
        )
    return {fields[task_type]: text}


def _status(client: Client, task_id: str) -> dict[str, Any]:
    task: dict[str, Any] = client.ask("GET", f"/api/tasks/{quote(task_id, safe='')}").json()
    return task


def _wait(client: Client, task_id: str, seconds: float) -> dict[str, Any]:
    deadline = time.monotonic() + seconds
    while (task := _status(client, task_id))["status"] not in _ENDED:
        if time.monotonic() > deadline:
            raise CliError(
                "timeout",
                f"Task {task_id} is still {task['status']} after {seconds:g} s.",
                f"Ask again: prime-spark tasks status {task_id} --wait",
                status=5,
            )
        time.sleep(_POLL_SECONDS)
    return task


def _show(output: Output, task: dict[str, Any]) -> None:
    lines = [f"{task['task_id']}  {task['status']}"]
    lines += [f"agent     {task['agent']}"] if task["agent"] else []
    lines += [f"attempts  {task['attempts']}"]
    lines += [f"error     {task['error']}"] if task["error"] else []
    if task["result"] is not None:
        lines += [f"result    {json.dumps(task['result'], ensure_ascii=False)}"]
    output.show(task, "\n".join(lines))
    if task["status"] == "FAILED":
        raise typer.Exit(1)


def _name(disposition: str) -> str:
    """Return the file name that the server suggests, without any directory in it."""
    name = disposition.partition('filename="')[2].partition('"')[0]
    return Path(name).name

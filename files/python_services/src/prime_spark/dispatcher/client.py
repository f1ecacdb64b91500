"""Gives a task to an agent over HTTP and says what came of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import msgspec

from prime_spark.config import read_credential
from prime_spark.kafka.clients import describe
from prime_spark.tasks.protocol import ExecuteAnswer, ExecuteRequest

_CONNECT_SECONDS = 3.0
_ERROR_BYTES = 64 * 1024
_MAX_REASON_CHARS = 500
_MAX_RETRY_AFTER = 30.0


class Completed(msgspec.Struct, frozen=True):
    """The task is done; `result` is JSON."""

    result: bytes


class Failed(msgspec.Struct, frozen=True):
    """The task cannot be done, by any agent."""

    reason: str


class AgentFailed(msgspec.Struct, frozen=True):
    """This agent has not done the task and is not at it; another may.

    `faulty`: the agent needs a cooldown. `unable`: it will never do this task.
    """

    reason: str
    faulty: bool = False
    unable: bool = False


class Busy(msgspec.Struct, frozen=True):
    """The agent takes no task now."""

    reason: str
    seconds: float


class Unreachable(msgspec.Struct, frozen=True):
    """The connection failed. With `sent`, the agent may have the task and be at it."""

    reason: str
    sent: bool


Outcome = Completed | Failed | AgentFailed | Busy | Unreachable


class AgentClient:
    """Calls the agents' `POST /api/execute`."""

    def __init__(self, credential: str, max_result_bytes: int) -> None:
        self._max_bytes = max_result_bytes
        # The task's own deadline bounds the wait for the answer.
        self._client = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {read_credential(credential)}"},
            timeout=httpx.Timeout(10.0, connect=_CONNECT_SECONDS, read=None, pool=None),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=20),
            trust_env=False,
        )

    async def execute(
        self, url: str, request: ExecuteRequest, on_sent: Callable[[], Awaitable[None]]
    ) -> Outcome:
        """Hand over the task, wait for its end; `on_sent` is called once the agent has it."""
        sent = False

        async def trace(event: str, _info: dict[str, Any]) -> None:
            nonlocal sent
            if event.endswith(".send_request_headers.started"):
                sent = True
            elif event.endswith(".send_request_body.complete"):
                await on_sent()

        try:
            async with self._client.stream(
                "POST",
                f"{url}/api/execute",
                content=msgspec.json.encode(request),
                headers={"Content-Type": "application/json"},
                extensions={"trace": trace},
            ) as response:
                body = await self._body(response)
        except httpx.HTTPError as error:
            return Unreachable(describe(error), sent)
        if body is None:
            return Failed(f"the result is larger than {self._max_bytes} bytes")
        return self._outcome(request.task_id, response, body)

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    async def _body(self, response: httpx.Response) -> bytes | None:
        """Return the body, or None when it is larger than an answer may be."""
        body = bytearray()
        async for chunk in response.aiter_bytes():
            body += chunk
            if len(body) > self._max_bytes + _ERROR_BYTES:
                return None
        return bytes(body)

    def _outcome(self, task_id: str, response: httpx.Response, body: bytes) -> Outcome:
        status = response.status_code
        if status == 200:
            return self._ended(task_id, body)
        text = " ".join(body.decode(errors="replace").split())[:_MAX_REASON_CHARS]
        reason = f"status {status}: {text}"
        if status in {400, 413, 422}:
            return Failed(reason)
        if status in {429, 503}:
            return Busy(reason, _retry_after(response))
        return AgentFailed(reason, faulty=True)

    def _ended(self, task_id: str, body: bytes) -> Outcome:
        try:
            answer = msgspec.json.decode(body, type=ExecuteAnswer)
        except msgspec.DecodeError as error:
            return AgentFailed(f"not an answer: {error}", faulty=True)
        if answer.task_id != task_id:
            return AgentFailed(f"the answer is for {answer.task_id[:80]!r}", faulty=True)
        return self.outcome_of(answer)

    def outcome_of(self, answer: ExecuteAnswer) -> Outcome:
        """Return what an agent's answer means."""
        if answer.status == "failed":
            reason = (answer.error or "no reason given")[:_MAX_REASON_CHARS]
            if not answer.retryable:
                return Failed(reason)
            return AgentFailed(reason, unable=answer.unable)
        result = msgspec.json.encode(answer.result)
        if len(result) > self._max_bytes:
            return Failed(f"the result has {len(result)} bytes, at most {self._max_bytes} are kept")
        return Completed(result)


def _retry_after(response: httpx.Response) -> float:
    try:
        seconds = float(response.headers.get("Retry-After", "1"))
    except ValueError:
        seconds = 1.0
    return min(max(seconds, 0.1), _MAX_RETRY_AFTER)

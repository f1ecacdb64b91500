"""Executes tasks: each once, a few at a time, the urgent first, none for ever."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import heapq
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import structlog

from prime_spark.agent.errors import BusyError, ConflictError, TaskFailedError
from prime_spark.agent.metrics import AgentMetrics
from prime_spark.agent.settings import LimitsConfig
from prime_spark.agent.store import AnswerStore, Kept
from prime_spark.runtime import finite_json
from prime_spark.runtime.redis_client import REDIS_ERRORS, describe_redis_error
from prime_spark.tasks.payloads import AnyPayload, PayloadError, check_payload
from prime_spark.tasks.protocol import PRIORITIES, ExecuteAnswer, ExecuteRequest, TaskType
from prime_spark.tasks.results import Results

_log = structlog.get_logger(__name__)

Handler = Callable[[str, Any], Awaitable[Any]]  # task id, payload -> result as JSON


@dataclass
class _Job:
    fingerprint: str
    work: asyncio.Task[ExecuteAnswer]
    cut_off: str = ""


class Executor:
    """Runs tasks by their type's handler.

    A task belongs to its id: a second request for it waits for the same answer, and one that has
    been completed (or can never be) is not begun again, not even after a restart: `store` keeps
    the answers of this agent, `results` what any agent has completed. A task does not end with
    the connection of whoever asked. `running` are the ids under way.
    """

    def __init__(
        self,
        handlers: Mapping[TaskType, Handler],
        store: AnswerStore,
        limits: LimitsConfig,
        metrics: AgentMetrics,
        *,
        running: set[str],
        results: Results | None = None,
    ) -> None:
        self._handlers = handlers
        self._store = store
        self._limits = limits
        self._metrics = metrics
        self._permits = PrioritySemaphore(limits.capacity)
        self._jobs: dict[str, _Job] = {}
        self._running = running
        self._results = results
        self._stopping = False

    async def execute(self, request: ExecuteRequest) -> ExecuteAnswer:
        """Return how the task ended; raises BusyError or ConflictError."""
        fingerprint = _fingerprint(request)
        job = self._jobs.get(request.task_id)
        if job is None:
            if self._stopping:
                raise BusyError("the agent is stopping")
            if len(self._jobs) >= self._limits.capacity + self._limits.queue:
                raise BusyError(f"{len(self._jobs)} tasks are under way or waiting")
            work = asyncio.create_task(self._work(request, fingerprint))
            job = self._jobs[request.task_id] = _Job(fingerprint, work)
            self._running.add(request.task_id)
            work.add_done_callback(lambda _: self._forget(request.task_id))
        elif job.fingerprint != fingerprint:
            raise ConflictError(f"task {request.task_id} is under way with another content")
        self._metrics.running.set(len(self._running))
        try:
            return await asyncio.shield(job.work)
        except asyncio.CancelledError:
            if job.work.cancelled():  # before it had really begun, or just after its end
                raise BusyError(job.cut_off or "cut off") from None
            raise

    def _forget(self, task_id: str) -> None:
        del self._jobs[task_id]
        self._running.discard(task_id)
        self._metrics.running.set(len(self._running))

    async def stop(self, seconds: float) -> None:
        """Take no more tasks; give those under way so long, then cut them off."""
        self._stopping = True
        if self._jobs:
            await asyncio.wait([job.work for job in self._jobs.values()], timeout=seconds)
        await self.cut_off("the agent is stopping")

    async def cut_off(self, reason: str) -> None:
        """End all tasks under way; they fail with `reason` and may be tried elsewhere."""
        jobs = list(self._jobs.values())
        for job in jobs:
            job.cut_off = reason
            job.work.cancel()
        if jobs:
            await asyncio.wait([job.work for job in jobs])

    async def _work(self, request: ExecuteRequest, fingerprint: str) -> ExecuteAnswer:
        kept = await asyncio.to_thread(self._store.get, request.task_id)
        if kept is not None:
            if kept.fingerprint != fingerprint:
                raise ConflictError(f"task {request.task_id} was done with another content")
            self._metrics.tasks.labels(request.task_type, "repeated").inc()
            return msgspec.json.decode(kept.answer, type=ExecuteAnswer)
        if (done := await self._done_elsewhere(request.task_id)) is not None:
            self._metrics.tasks.labels(request.task_type, "repeated").inc()
            return done
        started = time.monotonic()
        answer = await self._answer(request)
        seconds = time.monotonic() - started
        self._metrics.tasks.labels(request.task_type, answer.status).inc()
        self._metrics.seconds.labels(request.task_type).observe(seconds)
        _log.info(
            "task ended",
            task_id=request.task_id,
            task_type=request.task_type,
            status=answer.status,
            error=answer.error,
            seconds=round(seconds, 3),
        )
        if answer.status == "completed":
            answer = await self._commit(answer)
        if answer.status == "completed" or not answer.retryable:
            data = Kept(fingerprint, msgspec.json.encode(answer))
            await asyncio.to_thread(self._store.put, request.task_id, data)
        return answer

    async def _done_elsewhere(self, task_id: str) -> ExecuteAnswer | None:
        """Return the answer of another agent, or of this one before its disk was lost."""
        if self._results is None:
            return None
        try:
            return await self._results.find(task_id)
        except REDIS_ERRORS:
            return None

    async def _commit(self, answer: ExecuteAnswer) -> ExecuteAnswer:
        """Make the answer known to the fleet; return what counts, which another may have given."""
        if self._results is None:
            return answer
        try:
            return await self._results.commit(answer)
        except REDIS_ERRORS as error:
            _log.warning("answer not in redis", error=describe_redis_error(error))
            return answer

    async def _answer(self, request: ExecuteRequest) -> ExecuteAnswer:
        """Run the task and turn whatever happens into an answer."""
        seconds = min(request.timeout_seconds, self._limits.task_seconds)
        unable = False
        try:
            payload = check_payload(request.task_type, request.payload)
            async with asyncio.timeout(seconds):
                result = await self._run(request, payload)
        except TaskFailedError as error:
            reason, retryable, unable = str(error), error.retryable, error.unable
        except PayloadError as error:
            reason, retryable = str(error), False
        except TimeoutError:
            reason, retryable = f"not done within {seconds:g} s", True
        except asyncio.CancelledError:
            reason, retryable = self._jobs[request.task_id].cut_off or "cut off", True
        except Exception as error:  # noqa: BLE001 (a task must not take the agent down)
            _log.error("task failed unexpectedly", task_id=request.task_id, exc_info=error)
            reason, retryable = f"unexpected {type(error).__name__}", True
        else:
            return ExecuteAnswer(task_id=request.task_id, status="completed", result=result)
        return ExecuteAnswer(
            task_id=request.task_id,
            status="failed",
            error=reason,
            retryable=retryable,
            unable=unable,
        )

    async def _run(self, request: ExecuteRequest, payload: AnyPayload) -> Any:
        handler = self._handlers.get(request.task_type)
        if handler is None:
            raise TaskFailedError(
                f"this agent does not do tasks of type {request.task_type}", unable=True
            )
        async with self._permits.take(PRIORITIES.index(request.priority)):
            result = await handler(request.task_id, payload)
        try:
            finite_json.encode(result)
        except (TypeError, ValueError) as error:
            reason = f"the result is not JSON: {error}"
            raise TaskFailedError(reason, retryable=False) from error
        return result


class PrioritySemaphore:
    """A semaphore whose free permits go to the waiter with the lowest rank, then the oldest."""

    def __init__(self, permits: int) -> None:
        self._free = permits
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._order = itertools.count()

    @contextlib.asynccontextmanager
    async def take(self, rank: int) -> AsyncIterator[None]:
        """Hold a permit inside."""
        if self._free > 0:
            self._free -= 1
        else:
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            heapq.heappush(self._waiting, (rank, next(self._order), turn))
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self._give()  # the permit came at the same moment
                raise
        try:
            yield
        finally:
            self._give()

    def _give(self) -> None:
        while self._waiting:
            _, _, turn = heapq.heappop(self._waiting)
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1


def _fingerprint(request: ExecuteRequest) -> str:
    """Return what tells two contents under one task id apart; attempts and deadlines do not."""
    data = msgspec.json.encode([request.task_type, request.payload], order="sorted")
    return hashlib.sha256(data).hexdigest()

"""Gives the tasks that wait to the agents that live, and sees each through to its end.

One dispatcher at a time holds the lease. It notes in Redis to whom it gives a task before it
does, so its successor finds the task and asks the same agent again, which knows tasks by their
id. A task goes to another agent only once its agent has said that it failed, has restarted, or
has sent no heartbeat for so long that it has given the task up itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
import time
from collections.abc import Awaitable, Callable

import msgspec
import structlog
from prometheus_client import REGISTRY, CollectorRegistry

from prime_spark.dispatcher.client import (
    AgentClient,
    AgentFailed,
    Busy,
    Completed,
    Failed,
    Outcome,
    Unreachable,
)
from prime_spark.dispatcher.fleet import Fleet, Verdict
from prime_spark.dispatcher.metrics import DispatcherMetrics
from prime_spark.dispatcher.settings import DispatcherConfig
from prime_spark.dispatcher.store import Attempt, Lease, OvertakenError, TaskStore, View, Waiting
from prime_spark.kafka.clients import describe
from prime_spark.runtime.backoff import Backoff
from prime_spark.runtime.health import Health
from prime_spark.runtime.http import StatusServer
from prime_spark.runtime.redis_client import REDIS_ERRORS, describe_redis_error, redis_client
from prime_spark.runtime.service import Service, StoppedError, close_within
from prime_spark.tasks.protocol import ExecuteAnswer, ExecuteRequest
from prime_spark.tasks.results import Results

_log = structlog.get_logger(__name__)

_CLOSE_SECONDS = 2.0
_ANSWER_SECONDS = 1.0


class Dispatcher:
    """Waits for the lease, then dispatches until it is lost or the service stops."""

    def __init__(self, config: DispatcherConfig, registry: CollectorRegistry = REGISTRY) -> None:
        self._config = config
        self._registry = registry
        self._redis = redis_client(config.redis)
        self._renew_seconds = config.lease_seconds / 3
        # Of its own: a command that waits in Redis is answered late on purpose.
        patience = max(self._renew_seconds, config.poll_seconds) + _ANSWER_SECONDS
        self._waiting_redis = redis_client(config.redis, timeout=patience)
        self._client = AgentClient(config.credential, config.max_result_bytes)
        self._results = Results(self._redis)
        holder = f"{socket.gethostname()}-{secrets.token_hex(4)}"
        self._lease = Lease(self._redis, holder, config.lease_seconds)
        self._metrics = DispatcherMetrics(registry)
        self._health = Health("dispatcher")
        self._health.expect("redis", essential=True)
        self._health.expect("agents", essential=False)
        self._fleet = Fleet(config.agents, config.agent_dead_seconds)
        self._attempts: dict[str, asyncio.Task[None]] = {}
        self._changed = asyncio.Event()

    async def run(self, service: Service) -> None:
        """Run until told to stop. Tasks under way stay with their agents, for the next one."""
        server = StatusServer(self._health, self._registry, self._config.http)
        backoff = Backoff(first=0.2, limit=5.0)
        async with server.listening():
            service.ready("dispatching")
            try:
                while not service.stop.is_set():
                    service.beat("dispatch")
                    try:
                        fence = await service.unless_stopped(self._lease.acquire())
                        self._redis_ok()
                        backoff.reset()
                        if fence is None:
                            await self._stand_by(service)
                        else:
                            await self._lead(service, fence)
                    except StoppedError:
                        break
                    except OvertakenError as error:
                        _log.warning("lease lost", reason=str(error))
                    except REDIS_ERRORS as error:
                        self._redis_failed(error)
                        await service.pause(backoff.next())
            finally:
                with contextlib.suppress(*REDIS_ERRORS):
                    await self._lease.release()
                await close_within(_CLOSE_SECONDS, self._client.close())
                await close_within(_CLOSE_SECONDS, self._waiting_redis.aclose())
                await close_within(_CLOSE_SECONDS, self._redis.aclose())

    async def _stand_by(self, service: Service) -> None:
        holder = await self._lease.current_holder()
        self._health.set("agents", True, f"standing by: {holder} dispatches")
        await service.pause(self._renew_seconds)

    async def _lead(self, service: Service, fence: int) -> None:
        """Dispatch with the lease; raises OvertakenError, or one of REDIS_ERRORS at first."""
        store = TaskStore(self._redis, fence, self._config.keep_seconds)
        _log.info("dispatching", fence=fence)
        self._metrics.leading.set(1)
        try:
            self._fleet.blind()
            await store.announce(self._fleet.names)
            await self._dispatch(service, store, fence)
        finally:
            self._metrics.leading.set(0)
            await self._drop_attempts()

    async def _dispatch(self, service: Service, store: TaskStore, fence: int) -> None:
        renewed = float("-inf")
        while not service.stop.is_set():
            service.beat("dispatch")
            self._changed.clear()
            self._raise_what_ended_attempts()
            idle = False
            try:
                if time.monotonic() - renewed > self._renew_seconds:
                    asked = time.monotonic()
                    await self._lease.renew(fence)
                    renewed = asked
                if expired := await store.due("no agent has done the task in time"):
                    _log.warning("tasks waited too long", count=expired)
                idle = await self._look_and_assign(store)
            except REDIS_ERRORS as error:
                self._fleet.blind()
                self._redis_failed(error)
            else:
                self._redis_ok()
            until = renewed + self._renew_seconds if idle else None
            await self._pause(service, self._wait_for_work(store, until))

    async def _look_and_assign(self, store: TaskStore) -> bool:
        """See to what is under way, then give waiting tasks to free agents.

        Returns whether there is nothing to do before another task is submitted.
        """
        view = await store.look(self._fleet.names)
        self._fleet.see(view.heartbeats)
        self._show(view)
        # Given out by a dispatcher before this one, or by an answer of Redis that was lost.
        for task_id in view.active - self._attempts.keys():
            if (attempt := await store.attempt(task_id)) is not None:
                _log.info("taken over", task=task_id, agent=attempt.agent)
                self._begin(store, attempt, resumed=True)
        waiting = [task for tasks in view.queues.values() for task in tasks]
        # The highest priority first, then the oldest.
        for task in sorted(waiting, key=lambda task: task.score):
            if not self._lease.valid or not self._fleet.free():
                break
            if (choice := await self._choose(store, task)) is not None:
                name, instance = choice
                given = await store.assign(task, name, instance)
                if given is not None:
                    self._begin(store, given, resumed=False)
        return view.idle and not self._attempts

    async def _choose(self, store: TaskStore, task: Waiting) -> tuple[str, str] | None:
        """Return name and instance of a free agent for `task`, or None."""
        able = [item for item in self._fleet.free() if task.task_type in item[1].task_types]
        if not able:
            return None
        tried = await store.tried(task.task_id)
        fresh = [item for item in able if item[0] not in tried]
        if not fresh and self._fleet.others(task.task_type, tried):
            return None  # an agent that has not failed at it yet is only busy
        name, heartbeat = (fresh or able)[0]
        return name, heartbeat.instance

    def _begin(self, store: TaskStore, attempt: Attempt, *, resumed: bool) -> None:
        self._fleet.took(attempt)
        work = self._see_through(store, attempt, resumed=resumed)
        task = asyncio.create_task(work, name=f"task-{attempt.task_id}")
        self._attempts[attempt.task_id] = task
        self._metrics.running.set(len(self._attempts))

        def ended(_: asyncio.Task[None]) -> None:
            self._fleet.gave_back(attempt)
            self._changed.set()

        task.add_done_callback(ended)

    async def _see_through(self, store: TaskStore, attempt: Attempt, *, resumed: bool) -> None:
        """Have the attempt executed and note its end, however long Redis is away."""
        started = time.monotonic()
        try:
            outcome = await self._execute(store, attempt, resumed=resumed)
        except OvertakenError:
            raise
        except Exception as error:  # noqa: BLE001 (a task must neither be lost nor stop us)
            _log.exception("cannot execute", task=attempt.task_id)
            outcome = Failed(f"the dispatcher failed: {describe(error)}")
        self._metrics.attempt_seconds.labels(attempt.task_type).observe(time.monotonic() - started)
        await self._insist(lambda: self._record_outcome(store, attempt, outcome))

    async def _execute(self, store: TaskStore, attempt: Attempt, *, resumed: bool) -> Outcome:
        """Return what the agent makes of the task, or what became of the agent."""
        config = self._config
        request = ExecuteRequest(
            attempt.task_id,
            attempt.task_type,
            attempt.priority,
            msgspec.json.decode(attempt.payload),
            attempt.number,
            config.task_seconds,
        )

        async def on_sent() -> None:
            # Only for those who look; the task's end does not depend on it.
            with contextlib.suppress(*REDIS_ERRORS):
                await store.started(attempt)

        deadline = time.monotonic() + config.task_seconds + config.grace_seconds
        backoff = Backoff(first=config.poll_seconds, limit=2.0)
        sent = resumed
        reason = ""
        while time.monotonic() < deadline:
            if (lost := self._lost(attempt)) is not None:
                return await self._left(attempt, f"{lost} ({reason})" if reason else lost)
            # Without the lease another dispatcher may have given the task to another agent.
            if self._lease.valid:
                asking = self._client.execute(self._fleet.urls[attempt.agent], request, on_sent)
                outcome = await self._unless_lost(attempt, asking, deadline)
                if outcome is None:
                    continue
                sent = sent or (isinstance(outcome, Unreachable) and outcome.sent)
                # An agent that may be at the task is asked again until it tells how it ended.
                if not (sent and isinstance(outcome, Unreachable | Busy)):
                    return outcome
                reason = outcome.reason
            await asyncio.sleep(backoff.next())
        return await self._left(attempt, f"not finished within {config.task_seconds:g} s")

    async def _left(self, attempt: Attempt, reason: str) -> Outcome:
        """Return what an agent that answers no more has left: the completed task, or nothing."""
        found: list[ExecuteAnswer | None] = []

        async def look() -> None:
            found.append(await self._results.find(attempt.task_id))

        await self._insist(look)
        answer = found[0]
        return AgentFailed(reason) if answer is None else self._client.outcome_of(answer)

    def _lost(self, attempt: Attempt) -> str | None:
        """Return why the agent is certainly not at the task any more, if it is so."""
        match self._fleet.verdict(attempt):
            case Verdict.DEAD:
                return f"agent {attempt.agent} sends no heartbeat"
            case Verdict.RESTARTED:
                return f"agent {attempt.agent} was restarted"
        return None

    async def _unless_lost(
        self, attempt: Attempt, asking: Awaitable[Outcome], deadline: float
    ) -> Outcome | None:
        """Await an answer for as long as there is a point; None when there is not any more."""
        task = asyncio.ensure_future(asking)
        try:
            while not task.done() and time.monotonic() < deadline and self._lost(attempt) is None:
                await asyncio.wait({task}, timeout=self._config.poll_seconds)
            return task.result() if task.done() else None
        finally:
            task.cancel()

    async def _record_outcome(self, store: TaskStore, attempt: Attempt, outcome: Outcome) -> None:
        """Note the end of an attempt: the task's end too, or another attempt."""
        log = _log.bind(task=attempt.task_id, agent=attempt.agent, attempt=attempt.number)
        match outcome:
            case Completed(result):
                if await store.complete(attempt, result):
                    self._count(attempt, "COMPLETED")
            case Failed(reason):
                log.warning("failed for good", reason=reason)
                await self._fail(store, attempt, reason)
            case Busy(reason, seconds):
                self._fleet.cool_down(attempt.agent, seconds)
                await self._give_back(store, attempt, reason)
            case Unreachable(reason):
                log.warning("agent unreachable", reason=reason)
                self._fleet.cool_down(attempt.agent, self._config.cooldown_seconds)
                await self._give_back(store, attempt, reason)
            case AgentFailed(reason, faulty, unable):
                log.warning("attempt failed", reason=reason)
                if faulty:
                    self._fleet.cool_down(attempt.agent, self._config.cooldown_seconds)
                tried = (*attempt.tried, attempt.agent)
                if unable and not self._fleet.others(attempt.task_type, tried):
                    await self._fail(store, attempt, reason)
                else:
                    await self._retry(store, attempt, reason)

    async def _fail(self, store: TaskStore, attempt: Attempt, reason: str) -> None:
        number = f"attempt {attempt.number} on {attempt.agent}"
        if await store.fail(attempt, f"{number}: {reason}"):
            self._count(attempt, "FAILED")

    async def _retry(self, store: TaskStore, attempt: Attempt, reason: str) -> None:
        if attempt.number >= self._config.max_attempts:
            await self._fail(store, attempt, reason)
            return
        self._metrics.retries.labels(attempt.agent).inc()
        await store.again(
            attempt,
            f"attempt {attempt.number} on {attempt.agent}: {reason}",
            seconds=self._config.retry_seconds * 2 ** (attempt.number - 1),
            counted=True,
            tried=(*attempt.tried, attempt.agent),
        )

    async def _give_back(self, store: TaskStore, attempt: Attempt, reason: str) -> None:
        """The agent has not begun: the task keeps its place and its attempts."""
        text = f"agent {attempt.agent}: {reason}"
        await store.again(attempt, text, seconds=0.0, counted=False, tried=attempt.tried)

    async def _insist(self, note: Callable[[], Awaitable[None]]) -> None:
        """Repeat a change until Redis has taken it."""
        backoff = Backoff(first=0.1, limit=2.0)
        while True:
            try:
                await note()
            except REDIS_ERRORS as error:
                self._redis_failed(error)
                await asyncio.sleep(backoff.next())
            else:
                return

    def _raise_what_ended_attempts(self) -> None:
        """Forget attempts that have ended; raise the OvertakenError that ended one."""
        for task_id, task in list(self._attempts.items()):
            if task.done():
                del self._attempts[task_id]
                task.result()
        self._metrics.running.set(len(self._attempts))

    async def _drop_attempts(self) -> None:
        """Let go of all attempts: the agents go on, and whoever leads next asks them."""
        attempts, self._attempts = list(self._attempts.values()), {}
        for task in attempts:
            task.cancel()
        await asyncio.gather(*attempts, return_exceptions=True)
        self._metrics.running.set(0)

    async def _wait_for_work(self, store: TaskStore, until: float | None) -> None:
        """Wait for the next poll; with `until`, instead of polling, for a task to be submitted.

        No longer than that, for a wake-up may get lost.
        """
        shortest = self._config.poll_seconds
        if until is not None:
            with contextlib.suppress(*REDIS_ERRORS):  # that Redis is away, the next round tells
                await store.wait(self._waiting_redis, max(until - time.monotonic(), shortest))
                return
        await asyncio.sleep(shortest)

    async def _pause(self, service: Service, wait: Awaitable[None]) -> None:
        """Wait until the next round; an attempt that ends begins it at once."""
        waiting = asyncio.ensure_future(wait)
        waits = [asyncio.ensure_future(event.wait()) for event in (self._changed, service.stop)]
        await asyncio.wait({waiting, *waits}, return_when=asyncio.FIRST_COMPLETED)
        for event_wait in waits:
            event_wait.cancel()
        if not waiting.cancel():
            waiting.result()

    def _count(self, attempt: Attempt, state: str) -> None:
        self._metrics.ended.labels(attempt.task_type, state).inc()

    def _show(self, view: View) -> None:
        dead = [name for name in self._fleet.names if name not in view.heartbeats]
        for name in self._fleet.names:
            self._metrics.agent_alive.labels(name).set(name not in dead)
        for task_type, tasks in view.queues.items():
            self._metrics.queued.labels(task_type).set(len(tasks))
        detail = f"no heartbeat: {', '.join(dead)}" if dead else ""
        if self._health.set("agents", not dead, detail):
            _log.info("agents", missing=dead)

    def _redis_ok(self) -> None:
        if self._health.set("redis", True):
            _log.info("redis reachable")

    def _redis_failed(self, error: BaseException) -> None:
        if self._health.set("redis", False, describe_redis_error(error)):
            _log.warning("redis unreachable", error=describe_redis_error(error))

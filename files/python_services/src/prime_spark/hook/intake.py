"""The hook's HTTP side: POST /hooks/<source> beside /health and /metrics.

A delivery is on the disk when it is answered. An answer says what is wrong with a delivery, and
not what would be right.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import msgspec
import structlog
from fastapi import APIRouter, FastAPI, Request, Response
from prometheus_client import CollectorRegistry
from starlette.requests import ClientDisconnect

from prime_spark.config import HttpConfig
from prime_spark.hook.metrics import HookMetrics
from prime_spark.hook.queue import FullError, Queue, Taken
from prime_spark.hook.rules import Job, Rules, Source, ValueRefusedError
from prime_spark.hook.settings import LimitsConfig
from prime_spark.hook.signatures import UnverifiedError, check_proof, events_of, verify
from prime_spark.runtime.asgi import create_app
from prime_spark.runtime.health import Health

_log = structlog.get_logger(__name__)

_RETRY_SECONDS = 30

A = TypeVar("A")
R = TypeVar("R")


@dataclass(frozen=True)
class _Outcome:
    """What became of the events of a delivery that is taken; why parts of it are refused."""

    taken: Sequence[Taken] = ()
    refused: Sequence[str] = ()


class _AnswerError(Exception):
    """The delivery is answered so, and nothing of it is started."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status


class Intake:
    """Takes deliveries into the queue; `wake` is called when there is a new run."""

    def __init__(
        self,
        rules: Rules,
        secrets: Mapping[str, Sequence[str]],
        queue: Queue,
        *,
        limits: LimitsConfig,
        health: Health,
        metrics: HookMetrics,
        wake: Callable[[], None],
    ) -> None:
        self._rules = rules
        self._secrets = secrets
        self._queue = queue
        self._limits = limits
        self._unverified_bytes = 0
        self._health = health
        self._metrics = metrics
        self._wake = wake

    def app(self, http: HttpConfig, registry: CollectorRegistry) -> FastAPI:
        """Return the application: deliveries, /health and /metrics."""
        app = create_app("Prime Spark hook", self._health, http, registry)
        app.include_router(self._router())
        return app

    def bare_app(self) -> FastAPI:
        """Return the application for strangers: it takes deliveries and has nothing else."""
        app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
        app.include_router(self._router())
        return app

    def _router(self) -> APIRouter:
        router = APIRouter()

        @router.post("/hooks/{name}")
        async def deliver(name: str, request: Request) -> Response:
            """Take a delivery."""
            source = self._rules.source(name)
            label = "unknown" if source is None else source.name
            outcome = _Outcome()
            try:
                outcome = await self._take(source, request)
                status, detail = 202, ""
            except _AnswerError as error:
                status, detail = error.status, str(error)
            self._metrics.deliveries.labels(label, status).inc()
            client = request.client.host if request.client else ""
            _log.info(
                "delivery",
                audit="delivery",
                source=label,
                client=client,
                status=status,
                detail=detail,
                refused=outcome.refused,
                runs=[{"run": each.run, "how": each.how} for each in outcome.taken],
            )
            if status == 202:
                runs = [each.run for each in outcome.taken]
                return _answer(202, {"run": runs[0], "runs": runs})
            content = {"run": None, "detail": detail} if status == 200 else {"detail": detail}
            return _answer(status, content)

        return router

    async def _take(self, source: Source | None, request: Request) -> _Outcome:
        """Return what became of the delivery's events, one at least."""
        if source is None:
            raise _AnswerError(404, "there is no such source")
        headers: dict[str, str] = {}
        for name, value in request.headers.items():
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        read = bytearray()
        try:
            # Whoever shows none fills no memory.
            check_proof(source.kind, headers)
            await self._read(request, read)
            body = bytes(read)
            keys = verify(source.kind, self._secrets[source.name], headers, body)
        except UnverifiedError as error:
            raise _AnswerError(401, str(error)) from None
        finally:
            self._unverified_bytes -= len(read)
        try:
            events = events_of(source.kind, body, keys)
        except ValueError as error:
            raise _AnswerError(400, str(error)) from None
        jobs: list[tuple[tuple[str, ...], Job]] = []
        refused: list[str] = []
        for event in events:
            try:
                job = self._rules.job(source.name, headers, event.body)
            except ValueRefusedError as error:
                refused.append(str(error))
                continue
            if job is not None:
                jobs.append((event.keys, job))
        if not jobs:
            # Whoever has recorded it could send it again under headers that a rule wants.
            before = await self._stored(self._queue.remember, source.name, keys) if keys else None
            if before is not None:
                raise _AnswerError(409, _before(before))
            raise (
                _AnswerError(422, refused[-1]) if refused else _AnswerError(200, "no rule matches")
            )
        taken = await self._stored(self._queue.accept, source.name, jobs)
        if any(each.how == "new" for each in taken):
            self._wake()
        if all(each.how == "repeated" for each in taken):
            # Alertmanager tells of an alert again for as long as it fires.
            status = 200 if source.kind == "alertmanager" else 409
            raise _AnswerError(status, _before(taken[0].run))
        return _Outcome(taken, refused)

    async def _stored(self, store: Callable[[str, A], R], source: str, what: A) -> R:
        """Store something in the queue, or answer that this cannot be done now."""
        try:
            stored = await asyncio.to_thread(store, source, what)
        except FullError:
            raise _AnswerError(503, "the queue is full") from None
        except sqlite3.Error as error:
            if self._health.set("queue", False, str(error)):
                _log.error("the queue cannot be written", error=str(error))
            raise _AnswerError(503, "the delivery cannot be stored now") from None
        self._health.set("queue", True)
        return stored

    async def _read(self, request: Request, body: bytearray) -> None:
        """Append the body to `body`; the caller gives its bytes back."""
        limits = self._limits
        declared = request.headers.get("content-length", "0")
        try:
            if not declared.isdigit() or int(declared) <= limits.body_bytes:
                async for piece in request.stream():
                    body += piece
                    self._unverified_bytes += len(piece)
                    if self._unverified_bytes > limits.unverified_bytes:
                        raise _AnswerError(503, "too many deliveries at a time")
                    if len(body) > limits.body_bytes:
                        break
                else:
                    return
        except ClientDisconnect:
            raise _AnswerError(400, "the sender has gone away") from None
        raise _AnswerError(413, f"a body has at most {limits.body_bytes} bytes")


def _before(run: int) -> str:
    return f"this delivery came before, for run {run}" if run else "this delivery came before"


def _answer(status: int, content: object) -> Response:
    headers = {"Retry-After": str(_RETRY_SECONDS)} if status == 503 else None
    return Response(msgspec.json.encode(content), status, headers, media_type="application/json")

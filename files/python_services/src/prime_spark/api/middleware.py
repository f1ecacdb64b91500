"""The outermost ASGI layer: request id, size limits, security headers, metrics, events, log.

All in one: each layer of its own would cost every request another pair of wrappers. What is noted
of a request once it is answered is the request log's.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping
from functools import partial
from typing import NamedTuple

from starlette.exceptions import HTTPException
from starlette.requests import Request

from prime_spark.api.authorization import Allow
from prime_spark.api.dependencies import SCOPE_KEY as SERVICES_KEY
from prime_spark.api.dependencies import Services
from prime_spark.api.errors import ApiError, answer, unavailable
from prime_spark.api.request_context import SCOPE_KEY, RequestContext
from prime_spark.events import new_event_id
from prime_spark.runtime.asgi import Application, Message, Receive, Send, endpoint_of, method_of

DOCS_PREFIX = "/docs"
# Read at a time of one path: once decoded, a body may take thirty times as much.
_LARGE_BYTES = 8 * 1024 * 1024
# Well below what the server gives a body to arrive in, which goes on meanwhile.
_PERMIT_SECONDS = 20.0
_BUSY = "as many large bodies are being read as may be at a time"
_DRAIN_BYTES = 16 * 1024 * 1024
_DRAIN_SECONDS = 3.0

_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
)
_POLICY = (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'")
# Swagger UI sets style attributes; everything it loads is ours.
_DOCS_POLICY = (
    b"content-security-policy",
    (
        b"default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
        b"img-src 'self' data:; connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; "
        b"form-action 'none'"
    ),
)


class Large(NamedTuple):
    """What a path takes beyond what all take, and from whom."""

    body_bytes: int
    allow: Allow


class Middleware:
    """Every request comes and every answer goes through here; it brings along what routes use.

    `body_bytes` bounds bodies, `large` those of single paths. What is larger than `body_bytes` is
    read only from whom the path allows, and only a few at a time of a path: a model that takes
    minutes to answer keeps nobody from the memory. No account holds more than half of the permits,
    and who gets none in time is told to come again.
    """

    def __init__(
        self,
        app: Application,
        services: Services,
        *,
        body_bytes: int,
        large: Mapping[str, Large],
    ) -> None:
        self._app = app
        self._services = services
        self._request_log = services.request_log
        self._body_bytes = body_bytes
        self._large = dict(large)
        permits = {path: max(1, _LARGE_BYTES // each.body_bytes) for path, each in large.items()}
        self._permits = {path: asyncio.Semaphore(number) for path, number in permits.items()}
        self._accounts = {
            path: defaultdict[str, asyncio.Semaphore](
                partial(asyncio.Semaphore, max(1, number // 2))
            )
            for path, number in permits.items()
        }

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Handle one request, or whatever else the server has to say."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        path = scope["path"]
        client = scope["client"]
        address = client[0] if client else ""
        context = RequestContext(new_event_id(), address, method_of(scope), path)
        scope[SCOPE_KEY] = context
        scope[SERVICES_KEY] = self._services
        policy = _DOCS_POLICY if path.startswith(DOCS_PREFIX) else _POLICY
        added = (*_HEADERS, policy, (b"x-request-id", str(context.id).encode()))

        async def observe(message: Message) -> None:
            if message["type"] == "http.response.start":
                context.status = message["status"]
                message["headers"] = [*message["headers"], *added]
            await send(message)

        try:
            await self._let_through(scope, receive, observe)
        finally:
            context.seconds = time.perf_counter() - started
            context.answered = time.time()
            context.endpoint = endpoint_of(scope)
            self._request_log.add(context)

    async def _let_through(self, scope: Message, receive: Receive, send: Send) -> None:
        path = scope["path"]
        large = self._large.get(path)
        limit = self._body_bytes if large is None else large.body_bytes
        size = _announced(scope)
        uncounted = receive
        if size is None:
            receive = _counted(receive, limit)
        elif size > limit:
            await _refuse(scope, receive, send, ApiError(413, "too_large", _too_large(limit)))
            return
        if large is None or (limit if size is None else size) <= self._body_bytes:
            await self._app(scope, receive, send)
            return
        # FastAPI reads a body before it asks who sent it.
        try:
            caller = await large.allow(Request(scope))
            async with self._permit(path, caller.name):
                await self._app(scope, receive, send)
        except ApiError as error:
            await _refuse(scope, uncounted, send, error)

    @contextlib.asynccontextmanager
    async def _permit(self, path: str, account: str) -> AsyncIterator[None]:
        """Hold one of the permits for large bodies inside; raises ApiError when none gets free."""
        async with contextlib.AsyncExitStack() as held:
            try:
                async with asyncio.timeout(_PERMIT_SECONDS):
                    await held.enter_async_context(self._accounts[path][account])
                    await held.enter_async_context(self._permits[path])
            except TimeoutError:
                raise unavailable("api", _BUSY) from None
            yield


def _announced(scope: Message) -> int | None:
    """Return the size of the body; None where it comes in pieces."""
    size = 0
    for name, value in scope["headers"]:
        if name == b"content-length":
            size = int(value) if value.isdigit() else sys.maxsize
        elif name == b"transfer-encoding":
            return None
    return size


def _counted(receive: Receive, limit: int) -> Receive:
    received = 0

    async def counted() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > limit:
            await _drain(receive)
            raise HTTPException(413, _too_large(limit), {"Connection": "close"})
        return message

    return counted


async def _refuse(scope: Message, receive: Receive, send: Send, error: ApiError) -> None:
    """Answer at once; the connection ends with it."""
    response = answer(Request(scope), error)
    headers = [*response.raw_headers, (b"connection", b"close")]
    await send({"type": "http.response.start", "status": response.status_code, "headers": headers})
    content = response.body
    await send({"type": "http.response.body", "body": content, "more_body": True})
    if not any(name == b"expect" for name, _ in scope["headers"]):
        await _drain(receive)
    await send({"type": "http.response.body", "body": b""})


async def _drain(receive: Receive) -> None:
    """Read what a client still sends, within limits: one that cannot send reads no answer."""
    left = _DRAIN_BYTES
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_DRAIN_SECONDS):
            while left > 0:
                message = await receive()
                if message["type"] != "http.request" or not message.get("more_body"):
                    return
                left -= len(message.get("body", b""))


def _too_large(limit: int) -> str:
    return f"the body has more than {limit} bytes"

"""The outermost ASGI layer: request id, size limits, security headers, metrics, events, log.

All in one: each layer of its own would cost every request another pair of wrappers. What is noted
of a request once it is answered is the journal's.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping

import msgspec
from starlette.exceptions import HTTPException

from prime_spark.api.exchange import SCOPE_KEY, Exchange
from prime_spark.api.services import SCOPE_KEY as SERVICES_KEY
from prime_spark.api.services import Services
from prime_spark.events import new_event_id_text
from prime_spark.runtime.asgi import Application, Message, Receive, Send, endpoint_of, method_of

DOCS_PREFIX = "/docs"
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


class Gate:
    """Every request comes and every answer goes through here; it brings along what routes use.

    `body_bytes` bounds bodies, `body_bytes_of` those of single paths.
    """

    def __init__(
        self,
        app: Application,
        services: Services,
        *,
        body_bytes: int,
        body_bytes_of: Mapping[str, int],
    ) -> None:
        self._app = app
        self._services = services
        self._journal = services.journal
        self._body_bytes = body_bytes
        self._body_bytes_of = dict(body_bytes_of)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Handle one request, or whatever else the server has to say."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        path = scope["path"]
        client = scope["client"]
        exchange = Exchange(
            new_event_id_text(), client[0] if client else "", method_of(scope), path
        )
        scope[SCOPE_KEY] = exchange
        scope[SERVICES_KEY] = self._services
        policy = _DOCS_POLICY if path.startswith(DOCS_PREFIX) else _POLICY
        added = (*_HEADERS, policy, (b"x-request-id", exchange.id.encode()))

        async def observe(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                message["headers"] = [*message["headers"], *added]
            await send(message)

        limit = self._body_bytes_of.get(path, self._body_bytes)
        try:
            size, receive = _bounded(scope, receive, limit)
            if size > limit:
                await _refuse(scope, receive, observe, limit)
            else:
                await self._app(scope, receive, observe)
        finally:
            exchange.seconds = time.perf_counter() - started
            exchange.answered = time.time()
            exchange.endpoint = endpoint_of(scope)
            self._journal.add(exchange)


def _bounded(scope: Message, receive: Receive, limit: int) -> tuple[int, Receive]:
    """Return the announced size of the body, and a `receive` that bounds one not announced."""
    size = 0
    for name, value in scope["headers"]:
        if name == b"content-length":
            size = int(value) if value.isdigit() else limit + 1
        elif name == b"transfer-encoding":
            return 0, _counted(receive, limit)
    return size, receive


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


async def _refuse(scope: Message, receive: Receive, send: Send, limit: int) -> None:
    """Answer 413 at once; the connection ends with it."""
    exchange: Exchange = scope[SCOPE_KEY]
    body = {
        "code": "too_large",
        "detail": _too_large(limit),
        "request_id": exchange.id,
        "fields": [],
        "reasons": {},
    }
    content = msgspec.json.encode(body)
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(content)).encode()),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": 413, "headers": headers})
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

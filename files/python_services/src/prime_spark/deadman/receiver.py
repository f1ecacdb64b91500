"""The receiver's HTTP side: POST /heartbeat beside /health and /metrics."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Callable

from prometheus_client import CollectorRegistry

from prime_spark.config import HttpConfig
from prime_spark.deadman.watch import MessageError, is_heartbeat
from prime_spark.runtime.health import Health
from prime_spark.runtime.http import Answer, StatusServer

_MAX_BODY_BYTES = 256 * 1024


class HeartbeatServer(StatusServer):
    """Calls `on_heartbeat` when Alertmanager, which shows `token`, says that `alert` fires.

    POST /heartbeat answers 200 and what it made of the message; 401 without the token, 400 to
    what is no message of Alertmanager. GET /ready answers 200 while the process serves, alarm or
    not.
    """

    def __init__(
        self,
        health: Health,
        registry: CollectorRegistry,
        http: HttpConfig,
        *,
        token: str,
        alert: str,
        on_heartbeat: Callable[[], None],
    ) -> None:
        super().__init__(health, registry, http)
        self._token = f"Bearer {token}".encode()
        self._alert = alert
        self._on_heartbeat = on_heartbeat
        self._routes["/ready"] = lambda: _plain(200, "ready")

    async def _answer(self, reader: asyncio.StreamReader, client: str) -> tuple[Answer, bool]:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            return _plain(431, "request head too large"), True
        if head.startswith(b"POST /heartbeat HTTP/1."):
            return await self._heartbeat(head, reader), True
        again = asyncio.StreamReader()
        again.feed_data(head)
        again.feed_eof()
        return await super()._answer(again, client)

    async def _heartbeat(self, head: bytes, reader: asyncio.StreamReader) -> Answer:
        headers = _headers(head)
        if not hmac.compare_digest(headers.get(b"authorization", b""), self._token):
            return _plain(401, "the token is missing or wrong")
        size = headers.get(b"content-length", b"")
        if not size.isdigit():
            return _plain(411, "Content-Length is needed")
        if len(size) > 9 or int(size) > _MAX_BODY_BYTES:
            return _plain(413, f"at most {_MAX_BODY_BYTES} bytes")
        body = await reader.readexactly(int(size))
        try:
            beats = is_heartbeat(body, self._alert)
        except MessageError as error:
            return _plain(400, str(error))
        if not beats:
            return _plain(200, f"ignored: {self._alert} does not fire")
        self._on_heartbeat()
        return _plain(200, "heard")


def _headers(head: bytes) -> dict[bytes, bytes]:
    lines = head.split(b"\r\n")[1:]
    pairs = (line.partition(b":") for line in lines if b":" in line)
    return {name.strip().lower(): value.strip() for name, _, value in pairs}


def _plain(status: int, text: str) -> Answer:
    return status, "text/plain; charset=utf-8", text.encode() + b"\n"

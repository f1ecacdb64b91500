# Written by the role airflow.
"""Limits of what Airflow's web server takes from a client; the only process that loads them.

uvicorn keeps heads and bodies of any size, and no setting of Airflow's reaches its parser.
"""

import gc
from http import HTTPStatus
from typing import Any

import uvicorn.config
from prime_spark_http_protocol import LimitedProtocol

# Airflow takes every name that is listed here for a setting of its own.
__all__: list[str] = []

# Of the 128 connections that a member of the VPN may hold it is a tenth of the container's memory.
MAX_BODY_BYTES = 512 * 1024
# Of bodies that break off. Each leaves itself in a cycle, with the exception that Airflow makes of
# it, and Python collects by the number of objects, not by their size.
COLLECT_BYTES = 32 * 1024 * 1024
COLLECT_SECONDS = 1.0


class Protocol(LimitedProtocol):
    """One connection; a body that is too large ends it."""

    _left_bytes = 0  # of all connections

    def __init__(self, *arguments: Any, **options: Any) -> None:
        """Begin without a body."""
        super().__init__(*arguments, **options)
        self._body_bytes = 0

    def connection_lost(self, exc: Exception | None) -> None:
        """Collect what broken bodies have left, once there is much of it."""
        if self.cycle is not None and self.cycle.more_body:
            Protocol._left_bytes += self._body_bytes
        if Protocol._left_bytes > COLLECT_BYTES:
            Protocol._left_bytes = 0
            self.loop.call_later(COLLECT_SECONDS, gc.collect)
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        """Begin a request."""
        self._body_bytes = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Look at what the head says of the body."""
        for name, value in self.headers:
            if name == b"content-length" and int(value) > MAX_BODY_BYTES:
                self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Take a part of the body."""
        self._body_bytes += len(body)
        if self._body_bytes > MAX_BODY_BYTES:
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        super().on_body(body)


uvicorn.config.HTTP_PROTOCOLS["auto"] = f"{__name__}:Protocol"

"""What is known about a request while it is answered."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar, cast
from uuid import UUID

from starlette.requests import HTTPConnection, Request

T = TypeVar("T")

SCOPE_KEY = "prime_spark"


class RequestContext:
    """One request on its way. `id` is also the id of its event.

    `user` is set once it is known who asks, `audit` by what is worth an auditor's attention;
    `endpoint` (the route's template), `seconds` and `answered` (epoch seconds) once it is answered.
    """

    __slots__ = (
        "answered",
        "audit",
        "client",
        "endpoint",
        "id",
        "method",
        "path",
        "seconds",
        "status",
        "user",
    )

    def __init__(self, identifier: UUID, client: str, method: str, path: str) -> None:
        self.id = identifier
        self.client = client
        self.method = method
        self.path = path
        self.user: str | None = None
        self.audit: str | None = None
        self.status = 500  # what the server answers when the application raises
        self.endpoint = ""
        self.seconds = 0.0
        self.answered = 0.0


def request_context(request: HTTPConnection) -> RequestContext:
    """Return what is known about `request`."""
    return cast("RequestContext", cast("dict[str, Any]", request.scope)[SCOPE_KEY])


class GoneError(Exception):
    """The client has hung up; nobody reads an answer."""


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """Return what `work` returns; cancel it and raise GoneError once the client has hung up.

    For what takes long and is worth nothing without somebody who waits for it. The request's body
    has to be read before.
    """
    task = asyncio.ensure_future(work)
    going = asyncio.create_task(_hung_up(request))
    try:
        await asyncio.wait({task, going}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise GoneError
        return task.result()
    finally:
        going.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait({task})


async def _hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass

"""What is known about a request while it is answered."""

from __future__ import annotations

from typing import Any, cast

from starlette.requests import HTTPConnection

SCOPE_KEY = "prime_spark"


class Exchange:
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

    def __init__(self, identifier: str, client: str, method: str, path: str) -> None:
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


def exchange_of(request: HTTPConnection) -> Exchange:
    """Return what is known about `request`."""
    return cast("Exchange", cast("dict[str, Any]", request.scope)[SCOPE_KEY])

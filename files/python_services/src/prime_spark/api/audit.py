"""What an auditor wants to know: who logged in, who was refused, who changed what.

Each record is a line in the log (`audit` is its action), and the action stands in the metadata
of the request's event, so that it can be asked for in the database too.
"""

from __future__ import annotations

from fastapi import Request

from prime_spark.api.dependencies import services_of
from prime_spark.api.request_context import request_context


def audit(request: Request, action: str, *, user: str | None = None, **about: object) -> None:
    """Record `action` (such as `login_failed`). Never give it a secret, or a name as typed."""
    context = request_context(request)
    context.audit = action
    if user is not None:
        context.user = user
    line = {"audit": action, "user": context.user, "client": context.client, **about}
    services_of(request).request_log.note({**line, "request_id": str(context.id)})

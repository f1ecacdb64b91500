"""What an auditor wants to know: who logged in, who was refused, who changed what.

Each record is a line in the journal (`audit` is its action), and the action stands in the metadata
of the request's event, so that it can be asked for in the database too.
"""

from __future__ import annotations

import structlog
from fastapi import Request

from prime_spark.api.exchange import exchange_of

_log = structlog.get_logger("prime_spark.audit")


def audit(request: Request, action: str, *, user: str | None = None, **about: object) -> None:
    """Record `action` (such as `login_failed`). Never give it a secret, or a name as typed."""
    exchange = exchange_of(request)
    exchange.audit = action
    if user is not None:
        exchange.user = user
    _log.info(
        "audit",
        audit=action,
        user=exchange.user,
        client=exchange.client,
        request_id=exchange.id,
        **about,
    )

"""Lets a request through to a route: token, role, rate."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Depends, Request

from prime_spark.accounts.users import RANKS, Role
from prime_spark.api.audit import audit
from prime_spark.api.auth.service import Caller
from prime_spark.api.auth.tokens import TokenError
from prime_spark.api.dependencies import services_of
from prime_spark.api.errors import ApiError
from prime_spark.api.rate_limit import Rate
from prime_spark.api.request_context import request_context

SCHEME = "accessToken"
# For `openapi_extra` of every route that `Allow` guards.
SECURED: dict[str, Any] = {"security": [{SCHEME: []}]}


class Allow:
    """A dependency: who asks, given that their role is at least `role` and they may ask so often.

    One dependency, not one for each question: FastAPI's own cost of each is felt on a small host.
    """

    def __init__(self, role: Role, rate: Rate) -> None:
        self._role = role
        self._rate: Rate = rate

    async def __call__(self, request: Request) -> Caller:
        """Return who asks; raises ApiError 401, 403 or 429."""
        caller = recognise(request)
        context = request_context(request)
        if context.user is None:  # else the middleware has checked and counted it
            context.user = caller.name
            services_of(request).rates.check(self._rate, caller.name)
        if RANKS[caller.role] < RANKS[self._role]:
            audit(request, "denied", role=caller.role, needs=self._role, path=request.url.path)
            raise ApiError(403, "forbidden", f"needs the role {self._role}, yours is {caller.role}")
        return caller


def recognise(request: Request) -> Caller:
    """Return who asks; raises ApiError 401."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise _unauthenticated("an access token is needed: Authorization: Bearer …", "")
    try:
        return services_of(request).auth.recognise(token.strip())
    except TokenError as error:
        raise _unauthenticated(
            f"the access token is not valid: {error}", ', error="invalid_token"'
        ) from None


def _unauthenticated(detail: str, more: str) -> ApiError:
    headers = {"WWW-Authenticate": f'Bearer realm="prime-spark"{more}'}
    return ApiError(401, "not_authenticated", detail, headers=headers)


allow_write = Allow("operator", "write")
allow_generate = Allow("operator", "generate")
# For `dependencies` of a route; as types, for one that wants to know who asks.
may_read = Depends(Allow("viewer", "read"))
may_write = Depends(allow_write)
may_generate = Depends(allow_generate)
Reader = Annotated[Caller, may_read]
Writer = Annotated[Caller, may_write]

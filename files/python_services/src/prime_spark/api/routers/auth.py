"""Logging in, staying logged in, logging out."""

from __future__ import annotations

from typing import Annotated, Literal

import structlog
from fastapi import APIRouter, Request
from pydantic import Field, StringConstraints

from prime_spark.accounts.lockout import LockedError
from prime_spark.accounts.passwords import BusyError
from prime_spark.accounts.users import Role
from prime_spark.api.audit import audit
from prime_spark.api.auth.service import WrongCredentialsError
from prime_spark.api.auth.sessions import RefreshError, Session, SessionsUnavailableError
from prime_spark.api.authorization import SECURED, Reader
from prime_spark.api.dependencies import Services, services_of
from prime_spark.api.errors import GUARDED, ApiError, problems, unavailable
from prime_spark.api.request_context import request_context
from prime_spark.api.schema import Input, Output
from prime_spark.api.strict_json import StrictJsonRoute

_log = structlog.get_logger(__name__)

router = APIRouter(prefix="/api/auth", tags=["auth"], route_class=StrictJsonRoute)

_MAX_PASSWORD_CHARS = 256


class Login(Input):
    """A name and a password."""

    username: Annotated[str, StringConstraints(min_length=1, max_length=64)] = Field(
        examples=["alice"]
    )
    password: Annotated[str, StringConstraints(min_length=1, max_length=_MAX_PASSWORD_CHARS)] = (
        Field(examples=["correct horse battery staple"])
    )


class Refresh(Input):
    """A refresh token."""

    refresh_token: Annotated[str, StringConstraints(min_length=1, max_length=256)] = Field(
        examples=["0f1e2d3c4b5a69788796a5b4c3d2e1f0.kQ7d….9Xc1…"]
    )


class Tokens(Output):
    """An access token to ask with, and a refresh token to get the next ones with, once."""

    access_token: str = Field(examples=["eyJhbGciOiJIUzI1NiIsImtpZCI6Ij…"])
    token_type: Literal["bearer"] = "bearer"  # noqa: S105 (no secret)
    expires_in: int = Field(description="Seconds that the access token is valid", examples=[600])
    refresh_token: str = Field(examples=["0f1e2d3c4b5a69788796a5b4c3d2e1f0.kQ7d….9Xc1…"])


class Me(Output):
    """Who the access token belongs to."""

    username: str = Field(examples=["alice"])
    role: Role = Field(examples=["operator"])


class LoggedOut(Output):
    """The session has ended."""

    status: Literal["logged out"] = "logged out"


_WRONG = "the name or the password is wrong"


@router.post(
    "/login",
    summary="Log in",
    responses=problems(400, 401, 413, 422, 429, 503, e401=_WRONG),
)
async def login(request: Request, body: Login) -> Tokens:
    """Exchange a name and a password for tokens.

    After several wrong passwords the account is locked for the address that they came from, for a
    time that doubles (429 with `Retry-After`); after many from all addresses together, for every
    address that the account has not been logged in from before. An unknown name is answered
    exactly like a wrong password.
    """
    services = services_of(request)
    client = request_context(request).client
    services.rates.check("login", client)
    known = body.username if services.auth.users.get(body.username) else "unknown"
    try:
        access, session = await services.auth.login(body.username, body.password, client)
    except WrongCredentialsError:
        audit(request, "login_failed", account=known)
        raise _refused(_WRONG) from None
    except LockedError as error:
        audit(request, "login_locked", account=known, seconds=error.seconds)
        raise ApiError(
            429,
            "locked",
            f"too many wrong passwords; the next attempt may be made in {error.seconds} s",
            retry_after=error.seconds,
        ) from None
    except BusyError as error:
        raise unavailable("login", str(error), retry_after=2) from None
    except SessionsUnavailableError as error:
        raise _no_sessions(error) from None
    audit(request, "login", user=session.username)
    return _tokens(services, access, session)


@router.post(
    "/refresh",
    summary="Exchange a refresh token for new tokens",
    responses=problems(
        400, 401, 413, 422, 429, 503, e401="the refresh token is not valid: log in again"
    ),
)
async def refresh(request: Request, body: Refresh) -> Tokens:
    """Get the next access and refresh token. The one given is worth nothing afterwards.

    Repeated within seconds from the same address, the same next refresh token is the answer: the
    first one may have been lost. Otherwise one that was used before ends the whole session:
    somebody else may have it.
    """
    services = services_of(request)
    client = request_context(request).client
    services.rates.check("login", client)
    try:
        access, session = await services.auth.refresh(body.refresh_token, client)
    except RefreshError as error:
        action = "refresh_reused" if error.reused else "refresh_failed"
        audit(request, action, user=error.username, reason=str(error))
        raise _refused("the refresh token is not valid: log in again") from None
    except SessionsUnavailableError as error:
        raise _no_sessions(error) from None
    request_context(request).user = session.username
    return _tokens(services, access, session)


@router.post(
    "/logout",
    summary="Log out",
    responses=problems(*GUARDED, 503),
    openapi_extra=SECURED,
)
async def logout(request: Request, caller: Reader) -> LoggedOut:
    """End the session: its access and refresh tokens are worth nothing any more."""
    try:
        await services_of(request).auth.logout(caller)
    except SessionsUnavailableError as error:
        raise _no_sessions(error) from None
    audit(request, "logout")
    return LoggedOut()


@router.get(
    "/me", summary="Show the user of the token", responses=problems(*GUARDED), openapi_extra=SECURED
)
async def me(caller: Reader) -> Me:
    """Return the user whose access token this is."""
    return Me(username=caller.name, role=caller.role)


def _tokens(services: Services, access: str, session: Session) -> Tokens:
    return Tokens(
        access_token=access,
        expires_in=services.auth.access_seconds,
        refresh_token=session.refresh_token,
    )


def _refused(detail: str) -> ApiError:
    headers = {"WWW-Authenticate": 'Bearer realm="prime-spark"'}
    return ApiError(401, "not_authenticated", detail, headers=headers)


def _no_sessions(error: SessionsUnavailableError) -> ApiError:
    """Say that Redis is away; why is for the log, since anyone may ask this."""
    _log.warning("sessions unavailable", error=str(error))
    return unavailable("redis", "sessions can be neither begun nor ended now")

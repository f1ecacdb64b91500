"""Who asks for a page, and whether a form was sent by that person: logging in, sessions, roles."""

from __future__ import annotations

import asyncio
import hmac
import math
import re
import secrets
from collections.abc import Awaitable, Callable
from urllib.parse import parse_qsl, quote

import msgspec
import structlog
from fastapi import Request, Response
from fastapi.responses import RedirectResponse

from prime_spark.accounts.lockout import LockedError
from prime_spark.accounts.passwords import BusyError, Passwords
from prime_spark.accounts.users import RANKS, Role, User, Users
from prime_spark.hook.settings import PageConfig
from prime_spark.hook.web.logins import Lockout, Sessions, Store, form_token
from prime_spark.runtime.window import Window

_log = structlog.get_logger(__name__)

COOKIE = "prime_spark_hook"
# Before there is a session, the login form is bound to this.
_LOGIN_COOKIE = "prime_spark_hook_login"
# Sent by a page that loads itself again.
_UNATTENDED = "x-unattended"
_FORM_BYTES = 8192
_PASSWORD_CHARS = 256
_HASH_CALLS = 2
_HASH_WAIT_SECONDS = 5.0
_TOKEN = re.compile(r"[A-Za-z0-9_-]{43}")
_LOCAL = re.compile(r"/(?![/\\])[\w./?=&%~-]*")


class PageError(Exception):
    """The request is answered so, with a page that says why."""

    def __init__(self, status: int, message: str, seconds: int = 0) -> None:
        super().__init__(message)
        self.status = status
        self.seconds = seconds


class LoginNeededError(PageError):
    """There is no session."""

    def __init__(self) -> None:
        super().__init__(401, "You are not logged in, or your session has ended.")


class Caller(msgspec.Struct, frozen=True):
    """Whose session it is; `form` is what each of its forms contains."""

    user: User
    token: str
    form: str

    def may(self, role: Role) -> bool:
        """Whether the user has the role, or a higher one."""
        return RANKS[self.user.role] >= RANKS[role]


class Form(msgspec.Struct, frozen=True):
    """A form that a caller has sent."""

    caller: Caller
    fields: dict[str, str]


class Guard:
    """Knows the users; holds sessions and locks in `store`."""

    def __init__(self, config: PageConfig, users: Users, store: Store) -> None:
        self.sessions = Sessions(
            store, users, idle_seconds=config.idle_seconds, max_seconds=config.max_seconds
        )
        self._passwords = Passwords(users, _HASH_CALLS, _HASH_WAIT_SECONDS)
        self._lockout = Lockout(store, config.lockout)
        self._logins = Window(config.logins)

    # -- who asks -----------------------------------------------------------------------------

    def caller(self, request: Request) -> Caller | None:
        """Return who is logged in; blocks."""
        token = request.cookies.get(COOKIE, "")
        # A log that goes on and a page that loads itself again are not used by anybody.
        alone = _UNATTENDED in request.headers or request.url.path.endswith("/events")
        user = self.sessions.user(token, use=not alone) if token else None
        return None if user is None else Caller(user, token, form_token(token))

    def may(self, role: Role) -> Callable[[Request], Caller]:
        """Return a dependency: the caller, who has to have a role."""

        def dependency(request: Request) -> Caller:
            caller = self.caller(request)
            if caller is None:
                raise LoginNeededError
            if not caller.may(role):
                _refused(request, caller.user.name, f"needs the role {role}")
                raise PageError(403, f"This needs the role {role}; yours is {caller.user.role}.")
            return caller

        return dependency

    def sent_by(self, role: Role) -> Callable[[Request], Awaitable[Form]]:
        """Return a dependency: the form that a caller with a role has sent from our own page."""
        may = self.may(role)

        async def dependency(request: Request) -> Form:
            caller = await asyncio.to_thread(may, request)
            fields = await _fields(request)
            _check_form(request, fields, caller.form, caller.user.name)
            return Form(caller, fields)

        return dependency

    # -- logging in and out -------------------------------------------------------------------

    def login_form(self, request: Request) -> tuple[str, Callable[[Response], None]]:
        """Return what the login form contains, and what binds an answer's browser to it."""
        token = _login_token(request) or secrets.token_urlsafe(32)
        return form_token(token), lambda response: _set_cookie(response, _LOGIN_COOKIE, token)

    async def log_in(self, request: Request) -> Response:
        """Return the way to the page that was asked for, with a session; raises PageError."""
        fields = await _fields(request)
        # Of no token, everybody could compute what the form contains.
        token = _login_token(request) or secrets.token_urlsafe(32)
        _check_form(request, fields, form_token(token), "")
        username, password = fields.get("username", ""), fields.get("password", "")
        # What is typed as a name may be a password.
        known = username if self.sessions.users.get(username) else "unknown"
        address = address_of(request)
        if seconds := self._logins.wait(address):
            raise _later(seconds, "Too many attempts from your address.")
        try:
            await asyncio.to_thread(self._lockout.attempt, username, address)
            right = await self._passwords.check(username, password[:_PASSWORD_CHARS])
        except LockedError as error:
            _refused(request, known, "locked")
            raise _later(error.seconds, "Too many wrong passwords.") from None
        except BusyError:
            raise PageError(503, "Too many people log in just now. Try again.") from None
        if not right:
            _refused(request, known, "wrong name or password")
            raise PageError(401, "The name or the password is wrong.")
        await asyncio.to_thread(self._lockout.succeeded, username, address)
        session = await asyncio.to_thread(self.sessions.begin, username)
        _log.info("login", audit="login", user=username, client=address)
        wanted = fields.get("next", "")
        answer = RedirectResponse(wanted if _LOCAL.fullmatch(wanted) else "/", 303)
        _set_cookie(answer, COOKIE, session)
        answer.delete_cookie(_LOGIN_COOKIE)
        return answer

    async def log_out(self, form: Form) -> Response:
        """End the session."""
        await asyncio.to_thread(self.sessions.end, form.caller.token)
        answer = RedirectResponse("/login", 303)
        answer.delete_cookie(COOKIE)
        return answer


def login_path(request: Request) -> str:
    """Return the way to the login, and from there back to what was asked for."""
    wanted = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    return f"/login?next={quote(wanted, safe='/')}" if wanted != "/" else "/login"


def address_of(request: Request) -> str:
    """Return the client's address."""
    return request.client.host if request.client else ""


async def _fields(request: Request) -> dict[str, str]:
    """Return what a form sends; the last of each name."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip()
    if kind != "application/x-www-form-urlencoded":
        raise PageError(415, "Expected a form.")
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > _FORM_BYTES:
            raise PageError(413, "The form is too large.")
    try:
        return dict(parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=20))
    except ValueError:
        raise PageError(400, "The form cannot be read.") from None


def _login_token(request: Request) -> str:
    """Return what the browser's login form is bound to; nothing where that is not of our making."""
    token = request.cookies.get(_LOGIN_COOKIE, "")
    return token if _TOKEN.fullmatch(token) else ""


def _check_form(request: Request, fields: dict[str, str], expected: str, user: str) -> None:
    """Raise PageError unless our own page has sent the form, in the same session."""
    host = request.headers.get("host", "")
    same = request.headers.get("origin") in {f"http://{host}", f"https://{host}"}
    given = fields.get("form", "").encode()
    if not same or not hmac.compare_digest(given, expected.encode()):
        _refused(request, user, "not sent from a form of this session")
        raise PageError(403, "This form is not of your session. Open the page again.")


def _later(seconds: float, message: str) -> PageError:
    whole = math.ceil(seconds)
    return PageError(429, f"{message} Try again in {whole} s.", whole)


def _refused(request: Request, user: str, why: str) -> None:
    _log.warning(
        "refused",
        audit="refused",
        user=user[:64],
        client=address_of(request),
        method=request.method,
        path=request.url.path[:200],
        detail=why,
    )


def _set_cookie(response: Response, name: str, token: str) -> None:
    # Not `secure`: the page is on the VPN, which encrypts.
    response.set_cookie(name, token, httponly=True, samesite="strict", path="/")

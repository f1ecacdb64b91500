"""Logging in and out, and recognising who asks."""

from __future__ import annotations

import structlog

from prime_spark.accounts.passwords import Passwords
from prime_spark.accounts.users import User, Users
from prime_spark.api.auth.lockout import Lockout
from prime_spark.api.auth.sessions import RefreshError, Session, Sessions, SessionsUnavailableError
from prime_spark.api.auth.tokens import AccessTokens, TokenError
from prime_spark.runtime.service import Service

_log = structlog.get_logger(__name__)


class WrongCredentialsError(Exception):
    """Unknown user or wrong password: which of them is not told."""


class Caller(User, frozen=True):
    """The user behind a valid access token, and the session it belongs to."""

    session: str = ""


class Auth:
    """Who may do what. Redis keeps the sessions; access tokens are checked without it."""

    def __init__(
        self,
        users: Users,
        passwords: Passwords,
        tokens: AccessTokens,
        sessions: Sessions,
        lockout: Lockout,
    ) -> None:
        self.users = users
        self.access_seconds = tokens.seconds
        self._passwords = passwords
        self._tokens = tokens
        self._sessions = sessions
        self._lockout = lockout
        self._ended: set[str] = set()

    async def login(self, username: str, password: str, client: str) -> tuple[str, Session]:
        """Return an access token and the session it belongs to, for a login from an address.

        Raises WrongCredentialsError, LockedError, BusyError or SessionsUnavailableError.
        """
        await self._lockout.attempt(username, client)
        if not await self._passwords.check(username, password):
            raise WrongCredentialsError
        await self._lockout.succeeded(username, client)
        session = await self._sessions.begin(username, self.users.fingerprint(username) or "")
        return self._access(session), session

    async def refresh(self, refresh_token: str, client: str) -> tuple[str, Session]:
        """As `login`, for a refresh token from an address.

        Raises RefreshError or SessionsUnavailableError.
        """
        try:
            session = await self._sessions.rotate(refresh_token, client)
        except RefreshError as error:
            if error.reused:
                self._ended.add(refresh_token.partition(".")[0])
            raise
        if session.fingerprint != self.users.fingerprint(session.username):
            await self._end(session.id)
            raise RefreshError("the password has changed", username=session.username)
        return self._access(session), session

    async def logout(self, caller: Caller) -> None:
        """End the caller's session; raises SessionsUnavailableError when it may come back."""
        await self._end(caller.session)

    def recognise(self, token: str) -> Caller:
        """Return who an access token belongs to; raises TokenError. Waits for nothing."""
        claims = self._tokens.read(token)
        user = self.users.get(claims.username)
        if user is None or claims.fingerprint != self.users.fingerprint(claims.username):
            raise TokenError("the user is gone or the password has changed")
        if claims.session in self._ended:
            raise TokenError("logged out")
        return Caller(
            role=user.role,
            password_hash="",
            name=user.name,
            session=claims.session,
        )

    async def watch(self, service: Service, seconds: float) -> None:
        """Learn of sessions that ended elsewhere or before the start, until told to stop."""
        known = True
        while True:
            before = frozenset(self._ended)
            try:
                ended = await self._sessions.ended()
                # Also what ended here while Redis was being asked, and may not be in its answer.
                self._ended = ended | (self._ended - before)
                known = True
            except SessionsUnavailableError as error:
                if known:
                    _log.warning("cannot read ended sessions", error=str(error))
                known = False
            if await service.pause(seconds):
                return

    async def _end(self, session: str) -> None:
        self._ended.add(session)
        await self._sessions.end(session)

    def _access(self, session: Session) -> str:
        return self._tokens.issue(session.username, session.id, session.fingerprint)

"""Sessions in Redis: one rotating refresh token each, of which only the hash is kept.

A session is what begins with a login. Each use of its refresh token replaces the token; an older
one presented again means that someone else has it, and ends the session for both.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import time
from collections.abc import Sequence
from typing import Any, Protocol

import msgspec
from redis.asyncio import Redis

from prime_spark.runtime.redis_client import REDIS_ERRORS, describe_redis_error

SESSION = "auth:session:"
REVOKED = "auth:revoked"

_TOKEN = re.compile(r"([0-9a-f]{32})\.([A-Za-z0-9_-]{43})")

# KEYS session revoked; ARGV hash new-hash now idle-seconds session-id revoked-until
_ROTATE = """
local s = redis.call('HMGET', KEYS[1], 'token', 'user', 'fingerprint', 'ends')
if not s[1] then
  return {'unknown'}
end
if s[1] ~= ARGV[1] then
  redis.call('DEL', KEYS[1])
  redis.call('ZADD', KEYS[2], ARGV[6], ARGV[5])
  return {'reused', s[2]}
end
local left = math.floor(tonumber(s[4]) - tonumber(ARGV[3]))
if left < 1 then
  redis.call('DEL', KEYS[1])
  return {'unknown'}
end
redis.call('HSET', KEYS[1], 'token', ARGV[2])
redis.call('EXPIRE', KEYS[1], math.min(tonumber(ARGV[4]), left))
return {'ok', s[2], s[3]}
"""


class SessionsUnavailableError(Exception):
    """Redis does not answer; the message says why."""


class RefreshError(Exception):
    """The refresh token is worth nothing. `reused`: it was stolen, or the client mixed them up."""

    def __init__(self, reason: str, *, username: str | None = None, reused: bool = False) -> None:
        super().__init__(reason)
        self.username = username
        self.reused = reused


class Session(msgspec.Struct, frozen=True):
    """A session just begun or carried on, with the only copy of its refresh token."""

    id: str
    username: str
    fingerprint: str
    refresh_token: str


class _Script(Protocol):
    async def __call__(self, *, keys: Sequence[str], args: Sequence[Any]) -> Any: ...


class Sessions:
    """The sessions of all users. Every method may raise SessionsUnavailableError."""

    def __init__(
        self, redis: Redis, *, idle_seconds: int, max_seconds: int, access_seconds: int
    ) -> None:
        self._redis = redis
        self._idle_seconds = idle_seconds
        self._max_seconds = max_seconds
        # How long an access token of a session that has ended could still be used.
        self._revoked_seconds = access_seconds + 60
        self._rotate: _Script = redis.register_script(_ROTATE)

    async def begin(self, username: str, fingerprint: str) -> Session:
        """Begin a session."""
        session = secrets.token_hex(16)
        token = secrets.token_urlsafe(32)
        fields: dict[Any, Any] = {
            "token": _hash(token),
            "user": username,
            "fingerprint": fingerprint,
            "ends": time.time() + self._max_seconds,
        }
        try:
            async with self._redis.pipeline(transaction=True) as pipeline:
                pipeline.hset(SESSION + session, mapping=fields)
                pipeline.expire(SESSION + session, min(self._idle_seconds, self._max_seconds))
                await pipeline.execute()
        except REDIS_ERRORS as error:
            raise SessionsUnavailableError(describe_redis_error(error)) from error
        return Session(session, username, fingerprint, f"{session}.{token}")

    async def carry_on(self, refresh_token: str) -> Session:
        """Exchange a refresh token for the next one; raises RefreshError."""
        match = _TOKEN.fullmatch(refresh_token)
        if match is None:
            raise RefreshError("malformed")
        session, token = match.groups()
        following = secrets.token_urlsafe(32)
        now = time.time()
        keys = [SESSION + session, REVOKED]
        arguments = [_hash(token), _hash(following), now, self._idle_seconds, session]
        arguments.append(now + self._revoked_seconds)
        try:
            outcome, *about = await self._rotate(keys=keys, args=arguments)
        except REDIS_ERRORS as error:
            raise SessionsUnavailableError(describe_redis_error(error)) from error
        if outcome == b"unknown":
            raise RefreshError("expired or revoked")
        username = about[0].decode()
        if outcome == b"reused":
            raise RefreshError("used before", username=username, reused=True)
        return Session(session, username, about[1].decode(), f"{session}.{following}")

    async def end(self, session: str) -> None:
        """End a session: its refresh token is worth nothing, its access tokens are revoked."""
        try:
            async with self._redis.pipeline(transaction=True) as pipeline:
                pipeline.delete(SESSION + session)
                pipeline.zadd(REVOKED, {session: time.time() + self._revoked_seconds})
                await pipeline.execute()
        except REDIS_ERRORS as error:
            raise SessionsUnavailableError(describe_redis_error(error)) from error

    async def ended(self) -> set[str]:
        """Return the sessions that have ended so lately that access tokens of them may exist."""
        now = time.time()
        try:
            async with self._redis.pipeline(transaction=False) as pipeline:
                pipeline.zremrangebyscore(REVOKED, "-inf", now)
                pipeline.zrange(REVOKED, 0, -1)
                _, members = await pipeline.execute()
        except REDIS_ERRORS as error:
            raise SessionsUnavailableError(describe_redis_error(error)) from error
        return {member.decode() for member in members}


def _hash(token: str) -> str:
    """Return what is kept of a token: it is random, so a plain hash is enough."""
    return hashlib.sha256(token.encode()).hexdigest()

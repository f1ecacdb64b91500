"""Sessions in Redis: one rotating refresh token each, of which only hashes are kept.

A session is what begins with a login. Each use of its refresh token replaces the token; an older
one presented again means that someone else has it, and ends the session for both.

A refresh token is `session.proof.secret`. The session's id is no secret, every access token names
it. The proof stays the same for the session: only with it was a token ever valid. The secret
rotates: the next one is an HMAC of the present one, with a seed that only Redis keeps. So whoever
repeats a refresh soon, from the same address (the answer was lost, or several threads refresh at
once), is given the same next token again.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
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
# A user's last sessions, in a ring: by number, and `next`, the place whose turn it is.
OF_USER = SESSION + "of:"

_TOKEN = re.compile(r"([0-9a-f]{32})\.([A-Za-z0-9_-]{22})\.([A-Za-z0-9_-]{43})")

# KEYS session of-user revoked
# ARGV session-id prefix max-sessions ttl ring-ttl revoked-until field value...
_BEGIN = """
redis.call('HSET', KEYS[1], unpack(ARGV, 7))
redis.call('EXPIRE', KEYS[1], ARGV[4])
local place = tonumber(redis.call('HMGET', KEYS[2], 'next')[1] or '0') % ARGV[3]
local oldest = redis.call('HMGET', KEYS[2], place)[1]
if oldest and redis.call('DEL', ARGV[2] .. oldest) == 1 then
  redis.call('ZADD', KEYS[3], ARGV[6], oldest)
end
redis.call('HSET', KEYS[2], place, ARGV[1], 'next', place + 1)
redis.call('EXPIRE', KEYS[2], ARGV[5])
"""

# KEYS session revoked
# ARGV hash new-hash now idle-seconds session-id revoked-until proof-hash client grace-seconds
_ROTATE = """
local s = redis.call('HMGET', KEYS[1], 'token', 'user', 'fingerprint', 'ends', 'proof', 'before',
  'client', 'rotated')
if not s[1] then
  return {'unknown'}
end
if s[5] ~= ARGV[7] then
  return {'invalid', s[2]}
end
if s[1] ~= ARGV[1] then
  local age = tonumber(ARGV[3]) - tonumber(s[8] or '0')
  if s[6] == ARGV[1] and s[7] == ARGV[8] and age < tonumber(ARGV[9]) then
    return {'ok', s[2], s[3]}
  end
  redis.call('DEL', KEYS[1])
  redis.call('ZADD', KEYS[2], ARGV[6], ARGV[5])
  return {'reused', s[2]}
end
local left = math.floor(tonumber(s[4]) - tonumber(ARGV[3]))
if left < 1 then
  redis.call('DEL', KEYS[1])
  return {'unknown'}
end
redis.call('HSET', KEYS[1], 'token', ARGV[2], 'before', ARGV[1], 'client', ARGV[8],
  'rotated', ARGV[3])
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
        self,
        redis: Redis,
        *,
        idle_seconds: int,
        max_seconds: int,
        max_sessions: int,
        access_seconds: int,
        grace_seconds: float,
    ) -> None:
        self._redis = redis
        self._idle_seconds = idle_seconds
        self._max_seconds = max_seconds
        self._max_sessions = max_sessions
        self._grace_seconds = grace_seconds
        # How long an access token of a session that has ended could still be used.
        self._revoked_seconds = access_seconds + 60
        self._begin: _Script = redis.register_script(_BEGIN)
        self._rotate: _Script = redis.register_script(_ROTATE)

    async def begin(self, username: str, fingerprint: str) -> Session:
        """Begin a session, and end the user's oldest where there are too many."""
        session = secrets.token_hex(16)
        proof, token = secrets.token_urlsafe(16), secrets.token_urlsafe(32)
        now = time.time()
        fields = {
            "token": _hash(token),
            "proof": _hash(proof),
            "seed": secrets.token_bytes(32),
            "user": username,
            "fingerprint": fingerprint,
            "ends": now + self._max_seconds,
        }
        keys = [SESSION + session, OF_USER + username, REVOKED]
        arguments: list[Any] = [session, SESSION, self._max_sessions]
        arguments += [min(self._idle_seconds, self._max_seconds), self._max_seconds]
        arguments.append(now + self._revoked_seconds)
        for field in fields.items():
            arguments += field
        try:
            await self._begin(keys=keys, args=arguments)
        except REDIS_ERRORS as error:
            raise SessionsUnavailableError(describe_redis_error(error)) from error
        return Session(session, username, fingerprint, f"{session}.{proof}.{token}")

    async def rotate(self, refresh_token: str, client: str) -> Session:
        """Exchange a refresh token that came from the address `client`; raises RefreshError."""
        match = _TOKEN.fullmatch(refresh_token)
        if match is None:
            raise RefreshError("malformed")
        session, proof, token = match.groups()
        key = SESSION + session
        now = time.time()
        try:
            found: list[Any] = await self._redis.hmget(key, ["seed"])
            seed = found[0]
            if seed is None:
                raise RefreshError("expired or revoked")
            following = _following(seed, token)
            arguments = [_hash(token), _hash(following), now, self._idle_seconds, session]
            arguments += [now + self._revoked_seconds, _hash(proof), client, self._grace_seconds]
            outcome, *about = await self._rotate(keys=[key, REVOKED], args=arguments)
        except REDIS_ERRORS as error:
            raise SessionsUnavailableError(describe_redis_error(error)) from error
        if outcome == b"unknown":
            raise RefreshError("expired or revoked")
        username = about[0].decode()
        if outcome == b"invalid":
            raise RefreshError("never valid", username=username)
        if outcome == b"reused":
            raise RefreshError("used before", username=username, reused=True)
        following = f"{session}.{proof}.{following}"
        return Session(session, username, about[1].decode(), following)

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
        """Return the sessions that have ended so recently that access tokens of them may exist."""
        now = time.time()
        try:
            async with self._redis.pipeline(transaction=False) as pipeline:
                pipeline.zremrangebyscore(REVOKED, "-inf", now)
                pipeline.zrange(REVOKED, 0, -1)
                _, members = await pipeline.execute()
        except REDIS_ERRORS as error:
            raise SessionsUnavailableError(describe_redis_error(error)) from error
        return {member.decode() for member in members}


def _following(seed: bytes, token: str) -> str:
    """Return the secret that follows another: 32 bytes, in 43 characters."""
    digest = hmac.digest(seed, token.encode(), "sha256")
    return base64.urlsafe_b64encode(digest).decode().rstrip("=")


def _hash(token: str) -> str:
    """Return what is kept of a token: it is random, so a plain hash is enough."""
    return hashlib.sha256(token.encode()).hexdigest()

"""Access tokens: short-lived JWTs, signed with HS256 and nothing else."""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Sequence

import jwt
import msgspec

from prime_spark.config import ConfigError

_ALGORITHM = "HS256"
_MIN_KEY_BYTES = 32
_REQUIRED = ["iss", "aud", "exp", "nbf", "iat", "sub", "sid", "pwd"]
# How many tokens that were found valid are remembered, so that each is examined once only.
_MAX_KNOWN = 4096
# The clocks of the fleet agree within this.
_LEEWAY_SECONDS = 2


class TokenError(Exception):
    """The token is not valid; the message says why and holds nothing of the token."""


class Claims(msgspec.Struct, frozen=True):
    """What a valid access token says. `fingerprint` is the user's at the time of the login."""

    username: str
    session: str
    fingerprint: str
    expires: int


class AccessTokens:
    """Makes and reads access tokens. The first key signs, each of them is accepted."""

    def __init__(self, keys: Sequence[str], issuer: str, audience: str, seconds: int) -> None:
        for number, key in enumerate(keys, start=1):
            if len(key.encode()) < _MIN_KEY_BYTES:
                raise ConfigError(
                    f"signing key {number} has {len(key.encode())} bytes, expected {_MIN_KEY_BYTES}"
                )
        self._signing = _key_id(keys[0])
        self._key = keys[0]
        # Keys as the library wants them: it would examine the text again with each token.
        self._keys = {_key_id(key): _prepared(key) for key in keys}
        # Our own tokens' first part, which says which key it is, is the same for all of a key's.
        self._heads = {_head(key): self._keys[_key_id(key)] for key in keys}
        self._issuer = issuer
        self._audience = audience
        self._known: dict[str, Claims] = {}
        self.seconds = seconds

    def issue(self, username: str, session: str, fingerprint: str) -> str:
        """Return a token that is valid for `seconds`."""
        now = int(time.time())
        claims = {
            "iss": self._issuer,
            "aud": self._audience,
            "sub": username,
            "sid": session,
            "pwd": fingerprint,
            "iat": now,
            "nbf": now,
            "exp": now + self.seconds,
        }
        headers = {"kid": self._signing}
        return jwt.encode(claims, self._key, _ALGORITHM, headers=headers)

    def read(self, token: str) -> Claims:
        """Return the claims of `token`; raises TokenError.

        Whether its user and its session still exist is for the caller to ask, each time.
        """
        known = self._known.get(token)
        if known is not None and time.time() < known.expires:
            return known
        claims = self.verify(token)
        if len(self._known) >= _MAX_KNOWN:
            self._known.clear()
        self._known[token] = claims
        return claims

    def verify(self, token: str) -> Claims:
        """As `read`, examining the token again."""
        try:
            key = self._heads.get(token.partition(".")[0])
            if key is None:
                key = self._keys.get(jwt.get_unverified_header(token).get("kid", ""))
            if key is None:
                raise TokenError("signed with an unknown key")
            claims = jwt.decode(
                token,
                key,
                algorithms=[_ALGORITHM],
                audience=self._audience,
                issuer=self._issuer,
                leeway=_LEEWAY_SECONDS,
                options={"require": _REQUIRED},
            )
            return Claims(
                username=str(claims["sub"]),
                session=str(claims["sid"]),
                fingerprint=str(claims["pwd"]),
                expires=int(claims["exp"]),
            )
        except jwt.ExpiredSignatureError:
            raise TokenError("expired") from None
        except (jwt.InvalidTokenError, ValueError, TypeError) as error:
            raise TokenError(type(error).__name__) from None


def _prepared(key: str) -> jwt.PyJWK:
    encoded = base64.urlsafe_b64encode(key.encode()).rstrip(b"=").decode()
    return jwt.PyJWK({"kty": "oct", "k": encoded}, algorithm=_ALGORITHM)


def _head(key: str) -> str:
    token = jwt.encode({}, key, _ALGORITHM, headers={"kid": _key_id(key)})
    return token.partition(".")[0]


def _key_id(key: str) -> str:
    """Return the name of a key, which tells nothing about it."""
    return hashlib.sha256(b"prime-spark key id " + key.encode()).hexdigest()[:16]

"""Who may hand out tasks."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping

from prime_spark.agent.settings import CallerConfig
from prime_spark.config import read_credential


class Callers:
    """Knows callers by their bearer token; looking one up takes the same time whoever it is."""

    def __init__(self, callers: Mapping[str, CallerConfig]) -> None:
        self._digests = {
            name: _digest(read_credential(caller.credential).encode())
            for name, caller in callers.items()
        }

    def identify(self, authorization: str | None) -> str | None:
        """Return the caller whose token an Authorization header carries, or None."""
        scheme, _, token = (authorization or "").partition(" ")
        given = _digest(token.strip().encode("utf-8", "surrogateescape"))
        found = None
        for name, digest in self._digests.items():
            if hmac.compare_digest(given, digest):
                found = name
        return found if scheme.lower() == "bearer" else None


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()

"""What Schemathesis has to know about our API: how to log in."""

from __future__ import annotations

import os
from typing import Any

import httpx
import schemathesis

_CREDENTIALS = {
    "username": os.environ["PRIME_SPARK_USERNAME"],
    "password": os.environ["PRIME_SPARK_PASSWORD"],
}
_LOGIN = os.environ["PRIME_SPARK_URL"] + "/api/auth/login"
_kept: list[str] = []


def _token() -> str:
    answer = httpx.post(_LOGIN, json=_CREDENTIALS, timeout=60, trust_env=False)
    answer.raise_for_status()
    return str(answer.json()["access_token"])


@schemathesis.auth(refresh_interval=None)
class Login:
    """Logs in once; but a request that ends its session gets one of its own to end."""

    def get(self, case: Any, _context: Any) -> str:
        """Return a token for `case`."""
        if case.path == "/api/auth/logout":
            return _token()
        if not _kept:
            _kept.append(_token())
        return _kept[0]

    def set(self, case: Any, data: str, _context: Any) -> None:
        """Give `case` the token."""
        case.headers = case.headers or {}
        case.headers["Authorization"] = f"Bearer {data}"

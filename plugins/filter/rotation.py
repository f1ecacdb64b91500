"""Filters of playbooks/rotate.yml: which passwords to try on a server, and what came of it.

Results are `{user: [new accepted, old accepted]}` throughout.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
import uuid
from typing import Any

from ansible.errors import AnsibleFilterError


def rotation_attempts(users: dict[str, str], new: str, old: str) -> dict[str, list[str]]:
    """The new and the old password of every user whose password is the rotated secret."""
    return {name: [new, old] for name, password in sorted(users.items()) if password == new}


def rotation_api_users(
    users: dict[str, dict[str, Any]], new: str, old: str
) -> dict[str, list[str]]:
    """As `rotation_attempts`, for users of the API, of whom only argon2id hashes are known."""
    if not users:
        return {}
    try:
        from argon2 import PasswordHasher
        from argon2.exceptions import VerificationError
    except ImportError as error:
        raise AnsibleFilterError("rotation_api_users needs the package argon2-cffi") from error

    def matches(stored: str) -> bool:
        try:
            return PasswordHasher().verify(stored, new)
        except VerificationError:
            return False

    return {
        name: [new, old]
        for name, user in sorted(users.items())
        if matches(str(user["password_hash"]))
    }


def rotation_requests(
    attempts: dict[str, list[str]], urls: dict[str, str] | None = None
) -> list[dict[str, str]]:
    """Attempts as a loop: dicts of name, user, secret and url, the new one before the old one.

    With `urls`, by the server's name, every attempt is made on each of these servers.
    """
    return [
        {"name": f"{user} at {server}" if server else user, "user": user, "secret": s, "url": url}
        for server, url in (urls or {"": ""}).items()
        for user, pair in attempts.items()
        for s in pair
    ]


def rotation_answers(results: list[dict[str, Any]], accepted: int) -> dict[str, list[bool]]:
    """What came of a loop of `uri` over `rotation_requests`: HTTP status `accepted` or another."""
    seen: dict[str, list[bool]] = {}
    for result in results:
        seen.setdefault(result["item"]["name"], []).append(int(result["status"]) == accepted)
    return seen


def rotation_access_token(key: str, user: str, password_hash: str) -> str:
    """An access token of the API as prime_spark.api.auth.tokens makes it, good for a minute.

    It belongs to no session, so it cannot be refreshed.
    """
    digest = hashlib.sha256(b"prime-spark key id " + key.encode()).hexdigest()
    now = int(time.time())
    claims = {
        "iss": "prime-spark",
        "aud": "prime-spark-api",
        "sub": user,
        "sid": uuid.uuid4().hex,
        "pwd": hashlib.sha256(password_hash.encode()).hexdigest()[:16],
        "iat": now,
        "nbf": now,
        "exp": now + 60,
    }
    parts = [{"alg": "HS256", "typ": "JWT", "kid": digest[:16]}, claims]
    text = ".".join(_base64url(json.dumps(part).encode()) for part in parts)
    return f"{text}.{_base64url(hmac.digest(key.encode(), text.encode(), 'sha256'))}"


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def rotation_redis_commands(attempts: dict[str, list[str]]) -> str:
    """What redis-cli reads from its standard input: one login a line."""
    return "".join(f"AUTH {u} {secret}\n" for u, pair in attempts.items() for secret in pair)


def rotation_redis_answers(lines: list[str], attempts: dict[str, list[str]]) -> dict[str, Any]:
    """What redis-cli printed for these commands; an answer is OK or begins with an error's code."""
    answers = [line for line in lines if line.strip()]
    unknown = [a.split()[0] for a in answers if a != "OK" and not a.startswith("WRONGPASS")]
    if unknown or len(answers) != 2 * len(attempts):
        raise AnsibleFilterError(
            f"redis-cli answered {len(answers)} logins of {2 * len(attempts)} "
            f"{', '.join(unknown)}".rstrip()
        )
    accepted = iter([answer == "OK" for answer in answers])
    return {name: [next(accepted), next(accepted)] for name in attempts}


def rotation_keys(
    digests: list[str], new: dict[str, str], old: dict[str, str]
) -> dict[str, list[bool]]:
    """Which preshared keys an interface has, from their digests. A peer has one, and no other."""
    return {
        pair: [hashlib.sha256(keys[pair].encode()).hexdigest() in digests for keys in (new, old)]
        for pair in new
    }


def rotation_wrong(seen: dict[str, list[bool]]) -> list[str]:
    """What is not as it should be, in words without any secret."""
    return [
        f"{name}: the new one is {'accepted' if new else 'REFUSED'}, "
        f"the old one is {'ACCEPTED' if old else 'refused'}"
        for name, (new, old) in seen.items()
        if not new or old
    ]


class FilterModule:
    """The filters of playbooks/rotate.yml."""

    def filters(self) -> dict[str, Any]:
        return {
            "rotation_access_token": rotation_access_token,
            "rotation_answers": rotation_answers,
            "rotation_api_users": rotation_api_users,
            "rotation_attempts": rotation_attempts,
            "rotation_keys": rotation_keys,
            "rotation_redis_answers": rotation_redis_answers,
            "rotation_redis_commands": rotation_redis_commands,
            "rotation_requests": rotation_requests,
            "rotation_wrong": rotation_wrong,
        }

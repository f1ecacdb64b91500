"""Who sent a delivery: each sender's way to sign, what names a delivery, and what it tells.

Signatures are of the body as it came, and are compared in constant time.

- GitHub: https://docs.github.com/en/webhooks/using-webhooks/validating-webhook-deliveries
- GitLab: https://docs.gitlab.com/user/project/integrations/webhooks/
- Forgejo: https://forgejo.org/docs/latest/user/webhooks/
- Alertmanager: https://prometheus.io/docs/alerting/latest/configuration/#webhook_config
- Standard Webhooks: https://www.standardwebhooks.com/
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from prime_spark.hook.rules import Kind

TOLERANCE_SECONDS = 300
# In a notification of Alertmanager, whose `max_alerts` is not bounded by itself.
_MAX_ALERTS = 100
_SIGNING_SECRET = "whsec_"  # noqa: S105 (the prefix of one)
_ID = re.compile(r"[\x21-\x7e]{1,200}")

# One of these headers has to be there.
_PROOFS: dict[Kind, tuple[str, ...]] = {
    "github": ("x-hub-signature-256",),
    "gitlab": ("x-gitlab-token", "webhook-signature"),
    "forgejo": ("x-forgejo-signature", "x-gitea-signature"),
    "alertmanager": ("authorization",),
    "standard_webhooks": ("webhook-signature",),
}

Headers = Mapping[str, str]


class UnverifiedError(Exception):
    """A delivery is not from whom it claims; the message does not say what would be right."""


@dataclass(frozen=True)
class Event:
    """What a rule looks at. `keys` name the event: one of them twice is the same event twice."""

    body: Any
    keys: tuple[str, ...] = field(default=())


def check_secret(kind: Kind, secret: str) -> None:
    """Raise ValueError when `secret` cannot be one of this kind of source."""
    if kind == "standard_webhooks" or secret.startswith(_SIGNING_SECRET):
        _key(secret)
    elif len(secret) < 16:
        raise ValueError("a secret has at least 16 characters")


def check_proof(kind: Kind, headers: Headers) -> None:
    """Raise UnverifiedError when there is no header with a proof, before a body is read."""
    if kind == "git":
        raise UnverifiedError("this source sends nothing")
    if not any(name in headers for name in _PROOFS[kind]):
        raise UnverifiedError(f"{_PROOFS[kind][0]} is missing")


def verify(
    kind: Kind,
    secrets: Sequence[str],
    headers: Headers,
    body: bytes,
    now: Callable[[], float] = time.time,
) -> tuple[str, ...]:
    """Return the keys that name the delivery; raise UnverifiedError.

    Names of `headers` are in lower case.
    """
    check_proof(kind, headers)
    if kind == "github":
        _check_hex(secrets, _wanted(headers, "x-hub-signature-256"), body, "sha256=")
        # The id is not signed: who repeats the body under another id is found by the body.
        return (_id(headers, "x-github-delivery"), _digest(body))
    if kind == "forgejo":
        sender = "forgejo" if "x-forgejo-signature" in headers else "gitea"
        _check_hex(secrets, _wanted(headers, f"x-{sender}-signature"), body, "")
        return (_id(headers, f"x-{sender}-delivery"), _digest(body))
    if kind == "alertmanager":
        scheme, _, token = _wanted(headers, "authorization").partition(" ")
        if scheme.lower() != "bearer":
            raise UnverifiedError("authorization is no bearer token")
        _check_token(secrets, token, "the bearer token")
        return ()
    if kind == "gitlab" and "webhook-signature" not in headers:
        tokens = [secret for secret in secrets if not secret.startswith(_SIGNING_SECRET)]
        _check_token(tokens, _wanted(headers, "x-gitlab-token"), "x-gitlab-token")
        for name in ("idempotency-key", "x-gitlab-event-uuid"):
            if name in headers:
                return (_id(headers, name),)
        return (_digest(body),)
    if kind == "gitlab":
        secrets = [secret for secret in secrets if secret.startswith(_SIGNING_SECRET)]
    return (_check_standard(secrets, headers, body, now),)


def events_of(kind: Kind, body: bytes, keys: tuple[str, ...] = ()) -> list[Event]:
    """Return the events of a delivery: its body, or of Alertmanager each alert that fires.

    An alert's body is the alert (`labels`, `annotations`, `startsAt`, ...). It is the same alert
    for as long as group, fingerprint and startsAt are. Raises ValueError.
    """
    try:
        content = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise ValueError("the body is no JSON") from None
    if not isinstance(content, dict):
        raise ValueError("the body is no JSON object")  # noqa: TRY004 (as below)
    if kind != "alertmanager":
        return [Event(content, keys)]
    try:
        notification = msgspec.convert(content, _Notification)
    except msgspec.ValidationError as error:
        raise ValueError(f"the body is no notification of Alertmanager: {error}") from None
    return [
        Event(alert, (_digest("\0".join([notification.group_key, *_marks(alert)]).encode()),))
        for alert in notification.alerts
        if alert.get("status") == "firing"
    ]


class _Notification(msgspec.Struct):
    version: str
    group_key: str = msgspec.field(name="groupKey")
    alerts: list[dict[str, Any]]

    def __post_init__(self) -> None:
        if self.version != "4":
            raise ValueError("version is not 4")
        if len(self.alerts) > _MAX_ALERTS:
            raise ValueError(f"more than {_MAX_ALERTS} alerts")


def _marks(alert: dict[str, Any]) -> tuple[str, str]:
    marks = (alert.get("fingerprint"), alert.get("startsAt"))
    if not all(isinstance(mark, str) and mark for mark in marks):
        raise ValueError("an alert has no fingerprint or no startsAt")
    return str(marks[0]), str(marks[1])


def _check_hex(secrets: Sequence[str], given: str, body: bytes, prefix: str) -> None:
    right = [
        prefix + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest() for secret in secrets
    ]
    _check_token(right, given, "the signature")


def _check_standard(
    secrets: Sequence[str], headers: Headers, body: bytes, now: Callable[[], float]
) -> str:
    given = _wanted(headers, "webhook-signature")
    key = _id(headers, "webhook-id")
    stamp = _wanted(headers, "webhook-timestamp")
    if not re.fullmatch(r"[0-9]{1,12}", stamp):
        raise UnverifiedError("webhook-timestamp is no number of seconds")
    if abs(now() - int(stamp)) > TOLERANCE_SECONDS:
        raise UnverifiedError("webhook-timestamp is too far from now")
    content = f"{headers['webhook-id']}.{stamp}.".encode() + body
    right = [
        "v1," + base64.b64encode(hmac.digest(_key(secret), content, "sha256")).decode()
        for secret in secrets
    ]
    matches = [_is_one_of(right, each) for each in given.split(" ")[:10]]
    if not any(matches):
        raise UnverifiedError("the signature is wrong")
    return key


def _check_token(right: Sequence[str], given: str, what: str) -> None:
    if not _is_one_of(right, given):
        raise UnverifiedError(f"{what} is wrong")


def _is_one_of(right: Sequence[str], given: str) -> bool:
    """Compare with all of them, however they compare."""
    # By digests: else the time would tell the length.
    digest = hashlib.sha256(given.encode("utf-8", "surrogateescape")).digest()
    found = [hmac.compare_digest(digest, hashlib.sha256(one.encode()).digest()) for one in right]
    return any(found)


def _wanted(headers: Headers, name: str) -> str:
    if name not in headers:
        raise UnverifiedError(f"{name} is missing")
    return headers[name]


def _id(headers: Headers, name: str) -> str:
    value = _wanted(headers, name)
    if not _ID.fullmatch(value):
        raise UnverifiedError(f"{name} is no id")
    return f"id:{value}"


def _digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def _key(secret: str) -> bytes:
    try:
        key = base64.b64decode(secret.removeprefix(_SIGNING_SECRET), validate=True)
    except binascii.Error:
        raise ValueError("a signing secret is base64, whsec_ before it or not") from None
    if len(key) < 16:
        raise ValueError("a signing secret has at least 16 bytes")
    return key

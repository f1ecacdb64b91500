"""Deliveries of each sender, signed as it signs; what the tests of the hook share."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from copy import deepcopy
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "deliveries"
KINDS = ("github", "gitlab", "gitlab_signed", "forgejo", "alertmanager", "standard_webhooks")
SIGNING_SECRET = "whsec_" + base64.b64encode(b"k" * 32).decode()
SECRETS = {
    "github": "It's a Secret to Everybody",
    "gitlab": "a token of GitLab's",
    "gitlab_signed": SIGNING_SECRET,
    "forgejo": "a secret of Forgejo's",
    "alertmanager": "a token of Alertmanager's",
    "standard_webhooks": SIGNING_SECRET,
}


def recorded(kind: str) -> dict[str, Any]:
    name = kind.removesuffix("_signed")
    content: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text())
    return content


def body_of(kind: str) -> dict[str, Any]:
    """The recorded body, to change."""
    body: dict[str, Any] = deepcopy(recorded(kind)["body"])
    return body


def encoded(kind: str, body: Any) -> bytes:
    """The bytes that the sender would send: none writes JSON as another does."""
    if kind == "github":
        return json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode()
    if kind == "forgejo":
        return json.dumps(body, indent=2).encode()
    return json.dumps(body).encode()


def signed(
    kind: str,
    data: bytes | None = None,
    *,
    secret: str | None = None,
    identity: str | None = None,
    at: float | None = None,
) -> tuple[dict[str, str], bytes]:
    """Return headers and body of a delivery; `identity` instead of the recorded one."""
    secret = SECRETS[kind] if secret is None else secret
    if data is None:
        data = encoded(kind, body_of(kind))
    headers = dict(recorded(kind)["headers"])
    if identity is not None:
        for name in headers:
            if name.lower().endswith("-delivery") or name in {"Idempotency-Key", "webhook-id"}:
                headers[name] = identity
    if kind == "github":
        headers["X-Hub-Signature-256"] = "sha256=" + _hex(secret, data)
    elif kind == "forgejo":
        headers["X-Forgejo-Signature"] = headers["X-Gitea-Signature"] = _hex(secret, data)
        headers["X-Hub-Signature-256"] = "sha256=" + _hex(secret, data)
    elif kind == "alertmanager":
        headers["Authorization"] = f"Bearer {secret}"
    elif kind == "gitlab":
        headers["X-Gitlab-Token"] = secret
    else:
        identity = headers.get("webhook-id") or headers["Idempotency-Key"]
        stamp = str(int(time.time() if at is None else at))
        key = base64.b64decode(secret.removeprefix("whsec_"))
        mac = hmac.new(key, f"{identity}.{stamp}.".encode() + data, hashlib.sha256).digest()
        headers["webhook-id"] = identity
        headers["webhook-timestamp"] = stamp
        headers["webhook-signature"] = "v1," + base64.b64encode(mac).decode()
    return headers, data


def lowered(headers: dict[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def _hex(secret: str, data: bytes) -> str:
    return hmac.new(secret.encode(), data, hashlib.sha256).hexdigest()

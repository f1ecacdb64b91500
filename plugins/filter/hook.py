"""Filters of the role ``hook``: deliveries that show which secrets its sources accept."""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
import uuid
from collections.abc import Mapping
from typing import Any

# No JSON, and the signature is checked first: 400 where the secret is accepted, else 401.
BODY = "rotation"
SIGNING = "whsec_"


def hook_rotation_requests(
    sources: list[dict[str, Any]], secrets: Mapping[str, str], new: str, old: str
) -> list[dict[str, Any]]:
    """A loop of `uri`: to each source that has the secret `new`, a delivery with it and one with
    the one before."""
    return [
        {
            "name": f"source {source['name']}",
            "source": source["name"],
            "body": BODY,
            "headers": signed(source["kind"], secret),
        }
        for source in sources
        if new in [secrets.get(name) for name in source.get("secrets", [])]
        for secret in (new, old)
    ]


def signed(kind: str, secret: str) -> dict[str, str]:
    """The headers with which a sender of that kind proves who it is."""
    identity = uuid.uuid4().hex
    if kind == "alertmanager":
        return {"Authorization": f"Bearer {secret}"}
    if kind == "gitlab" and not secret.startswith(SIGNING):
        return {"X-Gitlab-Token": secret}
    if kind in ("github", "forgejo"):
        digest = hmac.new(secret.encode(), BODY.encode(), hashlib.sha256).hexdigest()
        if kind == "github":
            return {"X-Hub-Signature-256": f"sha256={digest}", "X-GitHub-Delivery": identity}
        return {"X-Forgejo-Signature": digest, "X-Forgejo-Delivery": identity}
    stamp = str(int(time.time()))
    key = base64.b64decode(secret.removeprefix(SIGNING))
    signature = hmac.digest(key, f"{identity}.{stamp}.{BODY}".encode(), "sha256")
    return {
        "webhook-id": identity,
        "webhook-timestamp": stamp,
        "webhook-signature": f"v1,{base64.b64encode(signature).decode()}",
    }


class FilterModule:
    """The filters of the role."""

    def filters(self) -> dict[str, Any]:
        return {"hook_rotation_requests": hook_rotation_requests}

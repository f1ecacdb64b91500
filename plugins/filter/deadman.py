"""Filters of the role ``deadman``: its channels without their secrets, and the secrets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def deadman_channels(webhooks: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The web hooks for the service's configuration; a token is named, not shown."""
    return {
        name: {key: value for key, value in hook.items() if key != "token"}
        | ({"credential": f"hook_{name}"} if hook.get("token") else {})
        for name, hook in webhooks.items()
    }


def deadman_mail(email: Mapping[str, Any]) -> dict[str, Any] | None:
    """The mail server for the service's configuration; None for none."""
    if not email:
        return None
    shown = {key: value for key, value in email.items() if key != "password"}
    return shown | ({"credential": "email"} if email.get("password") else {})


def deadman_secrets(
    webhooks: Mapping[str, Mapping[str, Any]], email: Mapping[str, Any]
) -> dict[str, str]:
    """Credential name to secret, as the other two filters name them."""
    found = {f"hook_{name}": str(h["token"]) for name, h in webhooks.items() if h.get("token")}
    return found | ({"email": str(email["password"])} if email.get("password") else {})


class FilterModule:
    """Registers the filters."""

    def filters(self) -> dict[str, Any]:
        return {
            "deadman_channels": deadman_channels,
            "deadman_mail": deadman_mail,
            "deadman_secrets": deadman_secrets,
        }

"""Filters that several roles use."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Mapping
from typing import Any


def credential_files(secrets: dict[str, str], directory: str) -> list[dict[str, str]]:
    """One file per secret in ``directory``, for the argument ``secret_files`` of config_tree."""
    return [
        {"path": f"{directory}/{name}", "content": str(secret)}
        for name, secret in sorted(secrets.items())
    ]


def absent_servers(
    servers: Mapping[str, list[str]], hostvars: Mapping[str, Any]
) -> dict[str, list[str]]:
    """Of what a service depends on, by name, the hosts that were unreachable when the run began.

    Of a host outside the run (``--limit``) nothing is known: it counts as there.
    """
    found = {
        name: [
            host for host in hosts if (hostvars[host].get("host_precheck") or {}).get("unreachable")
        ]
        for name, hosts in servers.items()
    }
    return {name: hosts for name, hosts in found.items() if hosts}


def fernet_key(secret: str) -> str:
    """The key that Fernet needs, 32 bytes in URL-safe base64, from a secret of any length."""
    return base64.urlsafe_b64encode(hashlib.sha256(str(secret).encode()).digest()).decode()


def scram_verifier(password: str, user: str, iterations: int = 4096) -> str:
    """PostgreSQL's stored form of a password (RFC 5803), so that no password reaches the server.

    The salt is derived from user and password: the same input gives the same verifier, and a second
    run sees that nothing changed.
    """
    secret = str(password).encode()
    salt = hmac.new(secret, f"prime-spark scram {user}".encode(), hashlib.sha256).digest()[:16]
    salted = hashlib.pbkdf2_hmac("sha256", secret, salt, iterations)
    client = hmac.new(salted, b"Client Key", hashlib.sha256).digest()
    stored = base64.b64encode(hashlib.sha256(client).digest()).decode()
    server = base64.b64encode(hmac.new(salted, b"Server Key", hashlib.sha256).digest()).decode()
    return f"SCRAM-SHA-256${iterations}:{base64.b64encode(salt).decode()}${stored}:{server}"


class FilterModule:
    """Registers the filters."""

    def filters(self) -> dict[str, Any]:
        return {
            "absent_servers": absent_servers,
            "credential_files": credential_files,
            "fernet_key": fernet_key,
            "scram_verifier": scram_verifier,
        }

"""Filters of the role api."""

from __future__ import annotations

import hashlib
import hmac
from typing import Any

from ansible.errors import AnsibleFilterError

# What prime_spark.accounts.users asks for at least, and all of a fleet's hashes have.
TIME_COST, MEMORY_KIB, PARALLELISM = 2, 19_456, 1
OLLAMA_PORT = 11434


def argon2id(password: str, user: str) -> str:
    """An argon2id hash of a password that stands in the vault, such as the lab's.

    The salt is derived from user and password: the same input gives the same hash, and a second run
    sees that nothing changed. A person's password is hashed by C(make api-user), with random salt.
    """
    try:
        from argon2 import PasswordHasher
    except ImportError as error:
        raise AnsibleFilterError("argon2id needs the Python package argon2-cffi") from error
    secret = str(password).encode()
    salt = hmac.new(secret, f"prime-spark argon2id {user}".encode(), hashlib.sha256).digest()[:16]
    return PasswordHasher(TIME_COST, MEMORY_KIB, PARALLELISM).hash(secret, salt=salt)


def edge_backends(names: list[str], hostvars: Any) -> list[dict[str, str]]:
    """Ollama on each of these hosts, for C(api_llm_backends)."""
    return [
        {
            "name": name,
            "source": "edge",
            "url": f"http://{hostvars[name]['wireguard_address']}:{OLLAMA_PORT}",
        }
        for name in names
    ]


def with_credential(backend: dict[str, Any], keys: dict[str, str]) -> dict[str, Any]:
    """A backend that names its credential, where there is a key for it."""
    name = str(backend.get("name"))
    return {**backend, "credential": f"llm_{name}"} if name in keys else dict(backend)


def numbered(secrets: list[str], prefix: str) -> dict[str, str]:
    """Credential name to secret: C(PREFIX1), C(PREFIX2), and so on."""
    return {f"{prefix}{number}": secret for number, secret in enumerate(secrets, start=1)}


def as_credential(name: str) -> dict[str, str]:
    """A block of the configuration that names a credential."""
    return {"credential": name}


def prefixed(secrets: dict[str, str], prefix: str) -> dict[str, str]:
    """Credential name to secret, each with the prefix before its name."""
    return {f"{prefix}{name}": secret for name, secret in secrets.items()}


class FilterModule:
    """Registers the filters."""

    def filters(self) -> dict[str, Any]:
        return {
            "argon2id": argon2id,
            "as_credential": as_credential,
            "edge_backends": edge_backends,
            "numbered": numbered,
            "prefixed": prefixed,
            "with_credential": with_credential,
        }

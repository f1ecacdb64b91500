"""Filters of the role ``monitoring``: what Prometheus scrapes, from the inventory."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.prime_spark.fleet.plugins.plugin_utils.catalogue import catalogue
from ansible_collections.prime_spark.fleet.plugins.plugin_utils.endpoints import endpoint_on

BCRYPT_COST = 10
BCRYPT_ALPHABET = "./ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"


def monitoring_targets(
    groups: Mapping[str, list[str]], hostvars: Any, only_prometheus: bool = False
) -> list[dict[str, str]]:
    """Every target as ``job``, ``host``, ``address`` and, of our services, ``service``.

    A host whose role is absent has none. With ``only_prometheus``, those alone that nobody else may
    ask.
    """
    found = []
    for role, entry in catalogue().items():
        for scraped in entry.scrape:
            if only_prometheus and not scraped.get("only_prometheus"):
                continue
            needed = [role, *([scraped["group"]] if "group" in scraped else [])]
            for host in sorted(groups.get(role, [])):
                values = hostvars[host]
                if any(host not in groups.get(role, []) for role in needed):
                    continue
                if any(values.get(f"{role}_state", "present") == "absent" for role in needed):
                    continue
                found_at = endpoint_on(host, scraped["endpoint"], hostvars)
                if not found_at["address"]:
                    raise AnsibleFilterError(f"{host} has no wireguard_address to be scraped at")
                target = {"job": scraped["job"], "host": host, "address": found_at["server"]}
                # Our services share a job.
                if scraped["job"] == "prime_spark":
                    target["service"] = role
                found.append(target)
    return found


def monitoring_target_files(
    targets: list[Mapping[str, str]], directory: str
) -> list[dict[str, str]]:
    """One file_sd file a job, ``JOB.json``; the instance is the address."""
    files = []
    for job in sorted({target["job"] for target in targets}):
        entries = [
            {
                "targets": [target["address"]],
                "labels": {key: target[key] for key in ("host", "service") if key in target},
            }
            for target in targets
            if target["job"] == job
        ]
        content = json.dumps(entries, indent=1) + "\n"
        files.append({"path": f"{directory}/{job}.json", "content": content})
    return files


def memory_share(limit: str, share: float) -> str:
    """A part of a container's memory limit (V(512m)), as Go's C(GOMEMLIMIT) takes it."""
    units = {"k": 1024, "m": 1024**2, "g": 1024**3}
    unit = str(limit)[-1].lower()
    number = float(str(limit)[:-1]) * units[unit] if unit in units else float(limit)
    return f"{int(number * share) // 1024**2}MiB"


def bcrypt_hash(password: str, user: str) -> str:
    """A bcrypt hash of a password of the vault, for a ``web.yml``.

    The salt is derived from user and password: the same input gives the same hash, and a second run
    sees that nothing changed.
    """
    try:
        import bcrypt
    except ImportError as error:
        raise AnsibleFilterError("bcrypt_hash needs the Python package bcrypt") from error
    secret = str(password).encode()
    raw = hmac.new(secret, f"prime-spark bcrypt {user}".encode(), hashlib.sha256).digest()[:16]
    return bcrypt.hashpw(secret, f"$2b${BCRYPT_COST:02d}${_salt(raw)}".encode()).decode()


def _salt(raw: bytes) -> str:
    """16 bytes in bcrypt's own base 64: 22 characters, the last with two bits of it."""
    bits = int.from_bytes(raw, "big") << 4
    return "".join(BCRYPT_ALPHABET[bits >> (6 * place) & 63] for place in reversed(range(22)))


class FilterModule:
    """Registers the filters."""

    def filters(self) -> dict[str, Any]:
        return {
            "bcrypt_hash": bcrypt_hash,
            "memory_share": memory_share,
            "monitoring_target_files": monitoring_target_files,
            "monitoring_targets": monitoring_targets,
        }

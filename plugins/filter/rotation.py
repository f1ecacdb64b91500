"""Filters of playbooks/rotate.yml: which passwords to try on a server, and what came of it.

Results are `{user: [new accepted, old accepted]}` throughout.
"""

from __future__ import annotations

import hashlib
from typing import Any

from ansible.errors import AnsibleFilterError

DOCUMENTATION = r"""
name: rotation
short_description: Try a new secret and the one before it
"""


def rotation_attempts(users: dict[str, str], new: str, old: str) -> dict[str, list[str]]:
    """The new and the old password of every user whose password is the rotated secret."""
    return {name: [new, old] for name, password in sorted(users.items()) if password == new}


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
            "rotation_attempts": rotation_attempts,
            "rotation_keys": rotation_keys,
            "rotation_redis_answers": rotation_redis_answers,
            "rotation_redis_commands": rotation_redis_commands,
            "rotation_wrong": rotation_wrong,
        }

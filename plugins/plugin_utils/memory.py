"""Quotas of the API's memory: within each other, and within what Redis has."""

from __future__ import annotations

import re
from typing import Any

from .fleet import Fleet

# As Redis reads it: kb is 1024 bytes, k is 1000.
SIZE = re.compile(r"(\d+)([kmg]?)(b?)", re.IGNORECASE)


def size(text: Any) -> int | None:
    """The bytes of a size such as 128mb; none of what Redis would not take."""
    if (match := SIZE.fullmatch(str(text))) is None:
        return None
    unit = 1024 if match[3] else 1000
    return int(match[1]) * int(unit ** " kmg".index(match[2].lower() or " "))


def check_memory(fleet: Fleet) -> None:
    """Refuse quotas that nobody could use up."""
    rooms = {}
    for host in fleet.of("redis"):
        given = fleet.values[host].get("redis_max_memory")
        if given is not None and (found := size(given)) is None:
            sentence = "expected bytes, or a number with kb, mb or gb"
            fleet.refuse(host, f"redis_max_memory is {given!r}, {sentence}")
        elif given is not None and found:  # 0 is no limit.
            # Values take more of Redis than they have bytes, and tasks are there, too.
            rooms[f"{given} of {host}"] = found // 2
    for host in fleet.of("api"):
        own = fleet.roles["api"].defaults.get("api_memory_quotas", {})
        given = fleet.values[host].get("api_memory_quotas", {})
        for tier in sorted({*own, *given}):
            quotas = given.get(tier) or {}
            user = quotas.get("user_bytes", 0)
            # What is left out is the service's own, which the role's default says.
            most = quotas.get("all_bytes", own.get(tier, {}).get("all_bytes", user))
            if user > most:
                fleet.refuse(
                    host,
                    f"api_memory_quotas: user_bytes of {tier} is {user}, expected at most "
                    f"all_bytes, which is {most}; lower it, or raise all_bytes",
                )
            for name, room in rooms.items() if tier == "redis" else ():
                if most > room:
                    fleet.refuse(
                        host,
                        f"api_memory_quotas: all_bytes of redis is {most}, expected at most "
                        f"{room}, half of redis_max_memory {name}; lower it, or raise "
                        f"redis_max_memory to {-(-2 * most // 2**20)}mb, and redis_memory with it",
                    )

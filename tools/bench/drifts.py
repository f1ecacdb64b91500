"""One drift of every kind that the comparison counts, planted by hand on the lab's hosts."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable

from tools.bench.state import Fleet, State


@dataclasses.dataclass(frozen=True)
class Drift:
    """What was planted, and how ``differences`` shows it."""

    name: str
    shows: str


# For each: the kind, how to choose among its names, the command; {} is the chosen name.
# A name is used once. Data, Docker's daemon and the connection itself are not touched.
_COMMANDS: tuple[tuple[str, str, Callable[[str], bool], str], ...] = (
    ("content", "files", lambda n: n.endswith("/config.json"), "echo '#' >> {}"),
    ("content of a unit", "files", lambda n: n.endswith(".timer"), "echo '# by hand' >> {}"),
    ("content for a container", "files", lambda n: n.endswith("/queries.yml"), "echo '#' >> {}"),
    ("mode", "files", lambda n: "credentials/" in n, "chmod 0644 {}"),
    ("owner", "files", lambda n: "credentials/" in n, "chown daemon {}"),
    ("group", "files", lambda n: "credentials/" in n, "chgrp daemon {}"),
    ("file deleted", "files", lambda n: n.startswith("/etc/bash_completion.d/"), "rm {}"),
    ("mode of a directory", "directories", lambda n: n.endswith("/telemetry"), "chmod 0777 {}"),
    ("owner of a directory", "directories", lambda n: n.endswith("/cli"), "chown daemon {}"),
    ("directory deleted", "directories", lambda n: n.endswith("/credentials"), "rm -r {}"),
    ("link moved", "links", lambda n: "/services/cli/" in n, "ln -sfn /nonexistent {}"),
    ("link deleted", "links", lambda n: n.startswith("/usr/local/bin/"), "rm {}"),
    ("unit stopped", "units", lambda n: "vpn-status" in n, "systemctl stop {}"),
    ("unit disabled", "units", lambda n: "telemetry" in n, "systemctl disable {}"),
    ("package removed", "packages", lambda n: n == "skopeo", "apt-get -q -y remove {}"),
    ("sysctl changed", "sysctls", lambda n: True, "sysctl --write {}=0"),
    ("user changed", "users", lambda n: True, "usermod --shell /bin/sh {}"),
    ("group deleted", "groups", lambda n: True, "groupdel {}"),
    ("container stopped", "containers", lambda n: "redis-exporter" in n, "docker stop {}"),
    (
        "container of another definition",
        "containers",
        lambda n: n == "monitoring/alertmanager",
        "cd /opt/prime-spark/stack/monitoring && "
        "echo 'services: {{alertmanager: {{labels: {{by-hand: \"1\"}}}}}}' > /run/by-hand.yml && "
        "docker compose -p monitoring -f compose.yml -f /run/by-hand.yml up -d alertmanager && "
        "rm /run/by-hand.yml",
    ),
    ("container removed", "containers", lambda n: "postgres-exporter" in n, "docker rm -f {}"),
)


def plant(fleet: Fleet, states: dict[str, State]) -> list[Drift]:
    """Plant one of each kind; raises LookupError when the fleet has nothing to plant it on."""
    planted: list[Drift] = []
    used: set[str] = set()
    for title, kind, chosen, command in _COMMANDS:
        host, name = _choose(states, kind, chosen, title, used)
        used.add(f"{host} {name}")
        # Compose names a container after its project and service.
        target = f"{name.replace('/', '-')}-1" if kind == "containers" else name
        fleet.run(host, command.format(shlex.quote(target)))
        planted.append(Drift(title, f"{host} {kind} {name}"))
    return planted


def _overlap(one: str, other: str) -> bool:
    """Whether the two are the same, or one of them lies in the other."""
    return one == other or one.startswith(f"{other}/") or other.startswith(f"{one}/")


def _choose(
    states: dict[str, State], kind: str, chosen: Callable[[str], bool], title: str, used: set[str]
) -> tuple[str, str]:
    for host, state in states.items():
        for name in state[kind]:
            place = f"{host} {name}"
            if not chosen(name) or any(_overlap(place, other) for other in used):
                continue
            # The group of a user cannot be deleted.
            if any(user["group"] == name for user in state["users"].values()):
                continue
            return host, name
    raise LookupError(f"no host of the fleet has anything for: {title}")

"""Servers and services killed, hosts rebooted: all come back by themselves, no sample is lost."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import pytest

from tests.system.faults.delivery import Delivery
from tests.system.fleet import fleet
from tests.system.fleet.condition import boot_id, wait_all_well
from tests.system.fleet.fleet import connect, members, shell

RECOVERY_SECONDS = 120.0


def container(project: str) -> str:
    """When the one container of a project was started last, while it runs."""
    (name,) = members(project)
    script = """
        id=$(docker ps --quiet --filter "label=com.docker.compose.project=$1")
        docker inspect --format '{{.State.StartedAt}}' $id
    """
    return shell(connect(name), script, project)


def service(unit: str, group: str) -> str:
    """The main process of a unit, on the last host of its group."""
    script = 'systemctl is-active --quiet "$1" && systemctl show -p MainPID --value "$1"'
    return shell(connect(members(group)[-1]), script, unit)


def kill_container(project: str) -> None:
    """Kill the container's main process; `docker kill` would count as stopped by hand."""
    (name,) = members(project)
    script = """
        id=$(docker ps --quiet --filter "label=com.docker.compose.project=$1")
        kill -KILL $(docker inspect --format '{{.State.Pid}}' $id)
    """
    shell(connect(name), script, project)


def kill_service(unit: str, group: str) -> None:
    """Kill every process of a unit."""
    shell(connect(members(group)[-1]), 'systemctl kill --signal=KILL "$1"', unit)


class Victim(NamedTuple):
    """Something to kill, and a look that tells one life of it from the next."""

    kill: Callable[[], None]
    life: Callable[[], str]


def _container(project: str) -> Victim:
    return Victim(lambda: kill_container(project), lambda: container(project))


def _service(unit: str, group: str) -> Victim:
    return Victim(lambda: kill_service(unit, group), lambda: service(unit, group))


VICTIMS = {
    "Kafka": _container("kafka"),
    "TimescaleDB": _container("timescale"),
    "Redis": _container("redis"),
    "ingest": _service("prime-spark-ingest.service", "ingest"),
    "collector": _service("prime-spark-telemetry.service", "telemetry"),
}
LONG: list[tuple[str, ...]] = [
    *((name,) for name in VICTIMS),
    ("Kafka", "Redis"),
    ("TimescaleDB", "ingest"),
]
SHORT: list[tuple[str, ...]] = [("Kafka", "Redis", "collector"), ("TimescaleDB", "ingest")]


@pytest.mark.parametrize("names", LONG if fleet.FULL else SHORT, ids="+".join)
def test_no_sample_is_lost_or_doubled_when_servers_are_killed(names: tuple[str, ...]) -> None:
    delivery = Delivery()
    victims = [VICTIMS[name] for name in names]
    lives = [victim.life() for victim in victims]
    for victim in victims:
        victim.kill()
    for name, victim, life in zip(names, victims, lives, strict=True):
        fleet.wait_until(
            f"another life of {name}", victim.life, 60, lambda now, was=life: now != was
        )
    silent = members("telemetry")[-1:] if "collector" in names else []
    delivery.confirm(f"kill -9 of {', '.join(names)}", RECOVERY_SECONDS, silent=silent)


# The long form of the others, which keep nothing that the fleet needs, is in tests/system/fleet.
REBOOTED = ["control-pc-1", "primecore1"] if fleet.FULL else ["control-pc-1"]


@pytest.mark.parametrize("name", REBOOTED)
def test_no_sample_is_lost_or_doubled_when_a_host_reboots(name: str) -> None:
    delivery = Delivery()
    before = boot_id(name)
    fleet.lab("reboot", name)
    fleet.disconnect(name)
    fleet.wait_until(
        f"another boot of {name}", lambda: boot_id(name), 60, lambda seen: seen != before
    )
    delivery.confirm(f"a reboot of {name}", RECOVERY_SECONDS, silent=[name])
    wait_all_well(RECOVERY_SECONDS)


def daemon(name: str) -> str:
    """The main process of a host's Docker daemon, once it answers."""
    script = "docker info >/dev/null && systemctl show -p MainPID --value docker.service"
    return shell(connect(name), script)


@pytest.mark.skipif(not fleet.FULL, reason="a long form: containers live on, so little can happen")
def test_no_sample_is_lost_or_doubled_when_the_docker_daemons_are_killed() -> None:
    delivery = Delivery()
    before = {name: daemon(name) for name in members("docker")}
    for name, life in before.items():
        shell(connect(name), "systemctl kill --signal=KILL docker.service")
        fleet.wait_until(
            f"another Docker daemon on {name}",
            partial(daemon, name),
            60,
            lambda seen, was=life: seen != was,
        )
    delivery.confirm("kill -9 of the Docker daemons", RECOVERY_SECONDS)

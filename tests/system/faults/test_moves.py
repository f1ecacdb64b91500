"""A role with data moves to another host and back; nothing of it runs on where it was."""

from __future__ import annotations

from functools import partial

import pytest

from tests.system.faults import site
from tests.system.faults.overlay import inventory
from tests.system.fleet import fleet
from tests.system.fleet.fleet import connect, members, setting, shell, wait_until

# Where each goes: Redis to a host that has no Docker yet, which leaves again with it.
TARGETS = {
    "kafka": "primecore1",
    "redis": "primecore4",
    "timescale": "control-pc-1",
    "airflow": "control-pc-1",
    "monitoring": "control-pc-1",
}
DATA = {
    "kafka": "kafka_data_directory",
    "redis": "redis_data_directory",
    "timescale": "timescale_data_directory",
    "airflow": "airflow_data_directory",
    "monitoring": "monitoring_prometheus_data_directory",
}

pytestmark = [
    pytest.mark.timeout(2400),
    pytest.mark.skipif(not fleet.FULL, reason="long form: make test-full"),
]


def running(name: str) -> set[str]:
    """Containers and units of ours that are there on a host, running or not."""
    script = """
        if command -v docker >/dev/null && docker info >/dev/null 2>&1; then
            docker ps --all --format 'container {{.Names}}'
        fi
        systemctl list-units --all --plain --no-legend 'prime-spark*' | awk '{print $1, $3}'
    """
    return set(shell(connect(name), script).splitlines())


def converge(role: str, *arguments: str) -> None:
    # With it its Docker may leave; both have data that stays where it is.
    confirmed = ("-e", f"confirm_removal={role},docker")
    done = site.run(*arguments, *confirmed, seconds=1200)
    assert done.status == 0, done.output[-5000:]


@pytest.mark.parametrize("role", list(DATA))
def test_a_role_with_data_moves_and_comes_back(role: str) -> None:
    (home,), target = members(role), TARGETS[role]
    directory = str(setting(home, role, DATA[role]))
    there, elsewhere = running(home), running(target)
    ours = {line for line in there if line.startswith(f"container {role}-")}
    assert ours and not ours & elsewhere
    born = shell(connect(home), 'stat --format "%i %u" "$1"', directory)
    try:
        with inventory(**{role: [target]}) as moved:
            converge(role, "-i", moved)
            assert not ours & running(home)
            assert ours <= running(target)
            assert shell(connect(home), 'stat --format "%i %u" "$1"', directory) == born
    finally:
        converge(role)
    # What a timer has started may run just now.
    for name, before in ((home, there), (target, elsewhere)):
        wait_until(f"{name} as before", partial(running, name), 60, before.__eq__)
    assert shell(connect(home), 'stat --format "%i %u" "$1"', directory) == born

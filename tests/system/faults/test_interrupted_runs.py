"""kill -9 of ansible-playbook at random moments, then a normal run: as if nothing had happened."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest

from tests.system.faults import fingerprints, site
from tests.system.fleet import fleet
from tests.system.fleet.condition import wait_all_well
from tests.system.fleet.fleet import connect, members, shell

pytestmark = [pytest.mark.last, pytest.mark.timeout(7200 if fleet.FULL else 1800)]

SEED = int(os.environ.get("PRIME_SPARK_SEED") or random.randrange(1_000_000))
KILLS = 10
# What the short form changes and an undisturbed run puts back. It touches files, units, a compose
# project and the release's configuration.
PENDING = ["telemetry_interval_seconds=7", "redis_max_memory=96mb", "wireguard_keepalive=20"]
TAKEN_AWAY = {
    "managed": "/etc/sysctl.d/60-prime-spark.conf",
    "nas": "/etc/systemd/system/mnt-nas.automount",
    "redis": "/opt/prime-spark/stack/redis/config/redis/redis.conf",
    "telemetry": "/etc/systemd/system/prime-spark-telemetry.service",
}


def descendants(process: int) -> list[int]:
    """A process and everything that it or its children started, as far as it lives."""
    parents: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The name in parentheses may hold anything.
            parent = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        parents.setdefault(parent, []).append(int(path.parent.name))
    found, left = [], [process]
    while left:
        found.append(left.pop())
        left += parents.get(found[-1], [])
    return found


def kill_a_run(chance: random.Random, first: int, last: int, *arguments: str) -> bool:
    """Start a run and kill it soon after its nth task began, n between first and last.

    By tasks rather than by the clock, so that a busy machine has its kills spread as well. Now and
    then the controller alone is killed, as the kernel does when memory is short: its workers then
    finish the task that they are at. What runs on hosts lives on in both cases. Returns whether the
    run was there to be killed.
    """
    number, delay = chance.randint(first, last), chance.uniform(0, 2)
    alone = chance.random() < 0.3
    log = Path(tempfile.mkstemp(prefix="prime-spark-killed-run-")[1])

    def tasks() -> list[str]:
        return [line for line in log.read_text().splitlines() if line.startswith("TASK [")]

    with log.open("wb") as output:
        process = subprocess.Popen(
            site.command(*arguments),
            cwd=fleet.ROOT,
            env=site.environment(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        fleet.wait_until(
            f"task {number} of a run",
            lambda: len(tasks()) >= number or process.poll() is not None,
            600,
            interval=0.1,
        )
        process.wait(delay)
        running = False
    except subprocess.TimeoutExpired:
        running = True
    finally:
        # It must not start another worker between the look at them and their end.
        if process.poll() is None:
            process.send_signal(signal.SIGSTOP)
            for pid in [process.pid] if alone else descendants(process.pid):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        process.wait()
    who = "the controller" if alone else "the controller and its workers"
    print(f"killed {who}" if running else "ended by itself", end=" ")
    print(f"at task {len(tasks())}, {tasks()[-1].strip(' *')}", flush=True)
    log.unlink()
    return running


def test_killed_runs_leave_nothing_that_the_next_does_not_make_good() -> None:
    """The short form: on the converged fleet, with changes pending."""
    if fleet.FULL:
        pytest.skip("the long form does more")
    print(f"PRIME_SPARK_SEED={SEED}")
    chance = random.Random(SEED)
    before = fingerprints.take()
    for group, path in TAKEN_AWAY.items():
        for name in members(group):
            shell(connect(name), 'rm "$1"', path)
    changes = [word for setting in PENDING for word in ("-e", setting)]
    assert kill_a_run(chance, 3, 33, *changes)
    assert kill_a_run(chance, 34, 66, *changes)
    run = site.run()
    assert run.status == 0, f"PRIME_SPARK_SEED={SEED}\n{run.output[-6000:]}"
    wait_all_well(60)
    differences = fingerprints.differences(before, fingerprints.take())
    assert differences == [], f"PRIME_SPARK_SEED={SEED}"


def bare_hosts() -> None:
    """The same fleet with empty disks."""
    for name in members("all"):
        fleet.disconnect(name)
    fleet.lab("destroy", "--disks", seconds=300)
    fleet.lab("up", seconds=300)


@pytest.mark.skipif(not fleet.FULL, reason="the long form")
def test_ten_killed_runs_from_bare_hosts_end_as_an_undisturbed_one() -> None:
    print(f"PRIME_SPARK_SEED={SEED}")
    chance = random.Random(SEED)
    bare_hosts()
    run = site.run(seconds=1200)
    assert run.status == 0, run.output[-6000:]
    wait_all_well(120)
    undisturbed, tasks = fingerprints.take(), run.output.count("\nTASK [")
    bare_hosts()
    for number in range(KILLS):
        # From the first task to the last; each finds what those before it have left undone.
        first, last = (tasks * n // KILLS for n in (number, number + 1))
        assert kill_a_run(chance, max(1, first), last - 1), f"PRIME_SPARK_SEED={SEED}"
    run = site.run(seconds=1200)
    assert run.status == 0, f"PRIME_SPARK_SEED={SEED}\n{run.output[-6000:]}"
    wait_all_well(120)
    differences = fingerprints.differences(undisturbed, fingerprints.take())
    assert differences == [], f"PRIME_SPARK_SEED={SEED}"
    again = site.run()
    assert (again.status, again.changed) == (0, 0), again.output[-6000:]

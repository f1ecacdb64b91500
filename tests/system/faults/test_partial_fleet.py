"""A host that is away is deferred: it fails nobody else, and the next run catches it up."""

from __future__ import annotations

import pytest

from tests.system.faults import site
from tests.system.fleet import fleet
from tests.system.fleet.condition import unhealthy
from tests.system.fleet.fleet import connect, members, shell

# A file of the role `common` that holds what the runs below change.
SYSCTL = "/etc/sysctl.d/60-prime-spark.conf"
CHANGE = '{"common_sysctl": {"net.ipv4.ip_nonlocal_bind": 1, "net.ipv4.tcp_syncookies": 1}}'
# One spoke that serves nobody; in the long form every host, with all that depends on it.
AWAY = members("all") if fleet.FULL else ["primecore4"]
# What a dead host may cost a run: one connection that is given up.
SECONDS = 60.0


def settings(name: str) -> str:
    return shell(connect(name), 'cat "$1"', SYSCTL)


@pytest.mark.parametrize("away", AWAY)
def test_a_host_that_is_away_is_deferred_and_caught_up(away: str) -> None:
    others = [name for name in members("all") if name != away]
    before = {name: settings(name) for name in members("all")}
    try:
        fleet.lab("cut", away)
        try:
            run = site.run("--tags", "common", "-e", CHANGE)
        finally:
            fleet.lab("heal", away)
        # 4: hosts were unreachable; 2 would be a failure.
        assert run.status == 4, run.output[-3000:]
        lines = [line for line in run.output.splitlines() if "unreachable (" in line]
        assert len(lines) == 1 and f"{away} is unreachable (" in lines[0], lines
        assert "deferred, the next run catches it up" in lines[0]
        assert {name: run.recap[name]["changed"] for name in others} == dict.fromkeys(others, 1)
        assert {counters["failed"] for counters in run.recap.values()} == {0}

        fleet.wait_until(f"{away} back", lambda: settings(away), 60, lambda s: s == before[away])
        late = site.run("--tags", "common", "-e", CHANGE)
        assert late.status == 0, late.output[-3000:]
        assert {name for name, counters in late.recap.items() if counters["changed"]} == {away}
        assert run.seconds - late.seconds < SECONDS
    finally:
        site.run("--tags", "common")
    assert {name: settings(name) for name in members("all")} == before


@pytest.mark.parametrize("away", AWAY)
def test_the_whole_site_converges_without_a_host(away: str) -> None:
    fleet.lab("cut", away)
    try:
        run = site.run()
    finally:
        fleet.lab("heal", away)
    assert run.status == 4, run.output[-4000:]
    assert f"deferred {away}: it was unreachable, the next run catches it up" in run.output
    assert "WRONG" not in run.output, run.output[-3000:]
    assert {counters["failed"] for counters in run.recap.values()} == {0}
    assert run.changed == 0


@pytest.mark.skipif(not fleet.FULL, reason="waits for two restarts of ingest")
def test_a_service_that_needs_an_absent_host_is_configured_all_the_same() -> None:
    (kafka,), (ingest,) = members("kafka"), members("ingest")
    change = ("--tags", "ingest", "-e", '{"ingest_batch_max_wait_ms": 400}')
    fleet.lab("cut", kafka)
    try:
        run = site.run(*change)
    finally:
        fleet.lab("heal", kafka)
        fleet.disconnect(kafka)
    try:
        assert run.status == 4, run.output[-4000:]
        assert (
            f"ingest runs as configured and cannot be healthy before {kafka} is back" in run.output
        )
        assert run.recap[ingest]["changed"] == 1
        fleet.wait_until("every service at 200", unhealthy, 120, lambda wrong: not wrong)
        assert site.run(*change).changed == 0
    finally:
        site.run("--tags", "ingest")

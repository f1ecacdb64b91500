"""Roles that leave: a host that left a group is cleaned by the next run, and its data stays."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from tests.system.faults import site
from tests.system.faults.overlay import inventory
from tests.system.fleet import fleet
from tests.system.fleet.fleet import connect, members, query, setting, shell, wait_until
from tests.system.predictions.record import compare, play

(KAFKA,) = members("kafka")
(REDIS,) = members("redis")
# Neither hub nor server: the host whose loss disturbs least.
SPOKE = next(
    name
    for name in members("telemetry")
    if name not in {KAFKA, REDIS, *members("timescale"), *members("spark_agent")}
)
BUFFER = "/var/lib/private/prime-spark-telemetry/buffer"
# The play of leftovers and the roles that it concerns, not the whole site: the same code, sooner.
LEFTOVERS = ["--tags", "leftovers"]

pytestmark = pytest.mark.timeout(900)


def exists(name: str, *paths: str) -> list[str]:
    """Which of the paths are there."""
    script = 'for path; do if [ -e "$path" ] || [ -L "$path" ]; then echo "$path"; fi; done'
    return shell(connect(name), script, *paths).splitlines()


def records(name: str) -> str:
    """What the host remembers of a role's trees."""
    return shell(connect(name), "cat /var/lib/prime-spark/trees/*.json")


def others(group: str, *leaving: str) -> list[str]:
    """The group's hosts without those that leave."""
    return [name for name in members(group) if name not in leaving]


@pytest.fixture
def telemetry_leaves() -> Iterator[None]:
    """SPOKE leaves the group telemetry, and is back in it afterwards."""
    yield
    play("--tags", "telemetry", "--limit", SPOKE)


def test_a_service_leaves_its_host_and_comes_back_to_its_data(telemetry_leaves: None) -> None:
    traces = [
        "/etc/systemd/system/prime-spark-telemetry.service",
        "/etc/prime-spark/telemetry",
        "/opt/prime-spark/services/telemetry",
        "/var/lib/prime-spark/trees/service-telemetry.json",
    ]
    assert exists(SPOKE, *traces) == traces
    state = shell(connect(SPOKE), 'stat --format "%i %U" "$1"', BUFFER)
    with inventory(telemetry=others("telemetry", SPOKE)) as moved:
        # Other roles' tag runs leave it alone.
        assert play("-i", moved, "--tags", "common", "--limit", SPOKE) == set()
        assert exists(SPOKE, *traces) == traces

        predicted = play("-i", moved, "--check", *LEFTOVERS)
        assert exists(SPOKE, *traces) == traces
        applied = play("-i", moved, *LEFTOVERS)
        assert compare(predicted, applied) == ""
        assert {host for host, _ in applied} == {SPOKE}
        assert exists(SPOKE, *traces) == []
        assert "telemetry" not in records(SPOKE)
        seen = connect(SPOKE).run("systemctl is-active prime-spark-telemetry.service")
        assert seen.stdout.strip() == "inactive"
        assert shell(connect(SPOKE), 'stat --format "%i %U" "$1"', BUFFER) == state
        assert play("-i", moved, *LEFTOVERS) == set()
    assert play("--tags", "telemetry", "--limit", SPOKE)
    assert exists(SPOKE, *traces) == traces
    assert shell(connect(SPOKE), 'stat --format "%i" "$1"', BUFFER) == state.split()[0]
    fresh = f"SELECT count(*) AS rows FROM device_metrics WHERE device_id = '{SPOKE}'"
    before = query(fresh)[0]["rows"]
    wait_until("telemetry is stored again", lambda: query(fresh)[0]["rows"] > before, 60)


@pytest.fixture
def redis_leaves() -> Iterator[None]:
    """Redis leaves its host, and is back afterwards."""
    yield
    play("--tags", "redis")


def test_a_compose_project_leaves_and_comes_back_to_its_data(redis_leaves: None) -> None:
    directory = setting(REDIS, "redis", "redis_data_directory")
    data = shell(connect(REDIS), 'find "$1" -name "*.aof" -size +0 | sort', directory)
    assert data
    guarded = ["-e", "role=redis", "--limit", REDIS]
    assert remove("--check", *guarded)[0] == 0
    project = "docker ps --all --quiet --filter label=com.docker.compose.project=redis"
    assert shell(connect(REDIS), project)
    status, said = remove(*guarded)
    assert status == 0, said
    assert f"its data stays: {directory}" in said
    assert "It still is in the group redis" in said
    assert shell(connect(REDIS), project) == ""
    networks = "docker network ls --quiet --filter label=com.docker.compose.project=redis"
    assert shell(connect(REDIS), networks) == ""
    assert exists(REDIS, "/opt/prime-spark/stack/redis") == []
    assert shell(connect(REDIS), 'find "$1" -name "*.aof" -size +0 | sort', directory) == data
    status, said = remove(*guarded)
    assert status == 0 and "changed=0" in said, said
    applied = play("--tags", "redis")
    assert applied == {(REDIS, "redis : Run Redis")}
    keys = "docker compose --project-name redis logs redis | grep 'DB loaded from'"
    assert shell(connect(REDIS), keys)


@pytest.mark.skipif(not fleet.FULL, reason="long form: make test-full")
def test_a_peer_leaves_the_vpn_and_its_key_stays() -> None:
    key = "/etc/wireguard/private.key"
    # Something has to be left for it to do: it still mounts the NAS.
    peer = next(name for name in members("nas") if name != KAFKA)
    born = shell(connect(peer), 'sha256sum < "$1"', key)
    # What needs the VPN on the same host leaves with it, and who needs the agent.
    needs = ("wireguard", "telemetry", "node_exporter", "llm_server", "spark_agent")
    leaving = {**{group: others(group, peer) for group in needs}, "dispatcher": []}
    try:
        with inventory(**leaving) as moved:
            # That many, and data that no other host has: nothing happens before it is confirmed.
            refused = site.run("-i", moved, "--skip-tags", "verify")
            assert refused.status == 2 and refused.changed == 0, refused.output[-3000:]
            assert f"REMOVAL  spark_agent leaves {peer}: no other host" in refused.output
            names = ",".join(sorted([*needs, "dispatcher"]))
            confirmed = f"confirm_removal={names}"
            assert f"-e {confirmed}" in refused.output
            applied = play("-i", moved, "--skip-tags", "verify", "-e", confirmed)
            assert {host for host, _ in applied} == {peer, KAFKA}
            assert exists(peer, "/etc/wireguard/wg0.conf", "/sys/class/net/wg0") == []
            assert peer not in shell(connect(KAFKA), "cat /etc/wireguard/wg0.conf")
            assert play("-i", moved, "--skip-tags", "verify") == set()
        assert shell(connect(peer), 'sha256sum < "$1"', key) == born
    finally:
        play()
    assert shell(connect(peer), 'sha256sum < "$1"', key) == born


# --- the guarded verb -----------------------------------------------------------------------


def remove(*arguments: str) -> tuple[int, str]:
    """Run playbooks/remove.yml; its exit status and what it printed."""
    done = subprocess.run(
        [fleet.BIN / "ansible-playbook", "playbooks/remove.yml", *arguments],
        cwd=fleet.ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    return done.returncode, " ".join(f"{done.stdout}{done.stderr}".split())


@pytest.mark.looks
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["-e", "role=redis"], "no hosts were named, expected --limit"),
        (
            ["--limit", REDIS],
            "role is not given, expected -e role=<name> with one of airflow, api, cli, common",
        ),
        (["-e", "role=radis", "--limit", REDIS], "role is radis, expected"),
        (["-e", "role=python_service", "--limit", REDIS], "role is python_service, expected"),
        (["-e", "role=redis", "--limit", REDIS, "-e", "purge=true"], "expected -e confirm=redis"),
        (
            ["-e", "role=redis", "--limit", REDIS, "-e", "purge=true", "-e", "confirm=kafka"],
            "expected -e confirm=redis",
        ),
    ],
)
def test_removal_is_refused_without_its_guards(arguments: list[str], sentence: str) -> None:
    status, said = remove(*arguments)
    assert status != 0
    assert sentence in said
    # Refused before anything was asked of a host.
    assert "TASK [Decide" not in said

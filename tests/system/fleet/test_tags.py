"""Tag runs, the operator's targeted fix: each tag works alone, changes nothing that is well, and
with --limit puts back what is missing on one host."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import NamedTuple, TypeAlias

import pytest

from tests.system.fleet import fleet
from tests.system.fleet.fleet import connect, members, shell, variables
from tests.system.fleet.recap import recap_of

pytestmark = pytest.mark.tags

STACK = "/opt/prime-spark/stack"
# By role: a file (or link) that it writes on the hosts of its group.
FILES = {
    "common": "/etc/sysctl.d/60-prime-spark.conf",
    "nas_server": "/etc/ssh/sshd_config.d/30-prime-spark-nas.conf",
    "wireguard": "/etc/wireguard/wg0.conf",
    "nas": "/etc/systemd/system/mnt-nas.automount",
    "docker": "/etc/docker/daemon.json",
    "kafka": f"{STACK}/kafka/config/kafka/server.properties",
    "redis": f"{STACK}/redis/config/redis/secret/users.acl",
    "timescale": f"{STACK}/timescale/config/timescale/pg_hba.conf",
    "airflow": f"{STACK}/airflow/config/airflow/airflow.cfg",
    "ingest": "/etc/prime-spark/ingest/credentials/kafka_password",
    "telemetry": "/etc/prime-spark/telemetry/config.json",
    "api": "/etc/systemd/system/prime-spark-api.service",
    "spark_agent": "/opt/prime-spark/services/agent/current",
    "dispatcher": "/etc/prime-spark/dispatcher/config.json",
    "cli": "/etc/prime-spark/cli/config.json",
    "llm_server": "/etc/systemd/system/prime-spark-llm-server.service",
    "node_exporter": "/etc/systemd/system/prime-spark-node-exporter.service",
    "exporters": f"{STACK}/exporters/compose.yml",
    "deadman": "/etc/prime-spark/deadman/config.json",
    "hook": "/etc/prime-spark/hook/rules.yml",
    "monitoring": f"{STACK}/monitoring/config/prometheus/prometheus.yml",
}
# A run keeps one core busy half of the time and waits for hosts in the other half.
AT_ONCE = 3
# Tasks that change something when the file is put back, where it is not one.
CHANGES = {"nas": 2}
# Roles without a group of their own.
GROUPS = {"common": "managed"}


class Recap(NamedTuple):
    """What the last lines of a run say of a host."""

    ok: int
    changed: int
    unreachable: int
    failed: int
    ignored: int


Run: TypeAlias = Future[tuple[str, dict[str, Recap]]]


def play(*arguments: str) -> tuple[str, dict[str, Recap]]:
    """Run site.yml; returns what it printed and the recap by host."""
    done = subprocess.run(
        [fleet.BIN / "ansible-playbook", "site.yml", *arguments],
        cwd=fleet.ROOT,
        env={**os.environ, "ANSIBLE_NOCOLOR": "1"},
        capture_output=True,
        text=True,
        timeout=180,
    )
    output = f"{done.stdout}{done.stderr}"
    assert done.returncode == 0, f"site.yml {' '.join(arguments)}: {output[-4000:]}"
    recap = recap_of(done.stdout).items()
    return output, {n: Recap(*(counts[field] for field in Recap._fields)) for n, counts in recap}


def changes(output: str) -> list[str]:
    """The tasks that changed something, with the host."""
    found, task = [], ""
    for line in output.splitlines():
        if line.startswith("TASK ["):
            task = line.removeprefix("TASK [").removeprefix("prime_spark.fleet.").rstrip("* ]")
        elif line.startswith("changed: ["):
            found.append(f"{line.removeprefix('changed: ')}: {task}")
    return found


def identity(name: str, path: str) -> str:
    """Content, owner and mode of a file, or the target of a link; nothing secret in it."""
    script = """
        stat --format '%A %U %G' "$1"
        if [ -L "$1" ]; then readlink "$1"; else sha256sum < "$1"; fi
    """
    return shell(connect(name), script, path)


def test_every_role_is_tried() -> None:
    assert set(FILES) == {path.name for path in (fleet.ROOT / "roles").iterdir()} - {
        "python_service"  # the others' tool, never run by itself
    }


def selected(request: pytest.FixtureRequest, test: str) -> list[str]:
    """The tags with which a test is about to run."""
    items = [item for item in request.session.items if isinstance(item, pytest.Function)]
    return [str(item.callspec.params["tag"]) for item in items if item.originalname == test]


@pytest.fixture(scope="module")
def runs(request: pytest.FixtureRequest) -> Iterator[dict[str, Run]]:
    """A run per tag. They change nothing, so they may run at the same time, which saves half."""
    tags = selected(request, "test_a_tag_alone_changes_nothing_that_is_well")
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield {tag: pool.submit(play, "--tags", tag, "--extra-vars", "full=true") for tag in tags}


@pytest.fixture(scope="module")
def restoring_runs(
    request: pytest.FixtureRequest, runs: dict[str, Run]
) -> Iterator[dict[str, Future[None]]]:
    """A run per tag after a file was taken away; each role has its own files."""
    wait(runs.values())
    tags = selected(request, "test_a_tag_with_limit_puts_back_what_is_missing")
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield {tag: pool.submit(take_away_and_restore, tag) for tag in tags}


@pytest.mark.parametrize("tag", FILES)
def test_a_tag_alone_changes_nothing_that_is_well(tag: str, runs: dict[str, Run]) -> None:
    output, recap = runs[tag].result()
    assert changes(output) == []
    assert {tuple(entry[1:]) for entry in recap.values()} == {(0, 0, 0, 0)}
    # The role's own tasks really ran, not only what every run does.
    tasks = set(re.findall(r"^TASK \[(\w+) : (?!Validating)", output, re.MULTILINE))
    assert tasks and tasks <= {tag, "python_service"}
    assert set(recap) >= set(members(GROUPS.get(tag, tag)))


@pytest.mark.parametrize("tag", FILES)
def test_a_tag_with_limit_puts_back_what_is_missing(
    tag: str, restoring_runs: dict[str, Future[None]]
) -> None:
    restoring_runs[tag].result()


def take_away_and_restore(tag: str) -> None:
    name, path = members(GROUPS.get(tag, tag))[-1], FILES[tag]
    before = identity(name, path)
    keep = f"/root/fleet-test-{tag}"
    shell(connect(name), 'mv -T "$1" "$2"', path, keep)
    try:
        output, recap = play("--tags", tag, "--limit", name, "--diff")
        assert set(recap) == {name}
        assert len(changes(output)) == CHANGES.get(tag, 1), changes(output)
        assert recap[name][1:] == (CHANGES.get(tag, 1), 0, 0, 0)
        assert identity(name, path) == before
    finally:
        # Whatever went wrong: the host gets its file back, and keeps it when it has it.
        shell(connect(name), '[ -e "$1" ] || mv -T "$2" "$1"; rm -f "$2"', path, keep)
    leaked = [key for key, value in vault().items() if value in output]
    assert leaked == [], "the run printed a secret"


def vault() -> dict[str, str]:
    """Every secret of the inventory."""
    return {
        key: str(value)
        for name in members("all")
        for key, value in variables(name).items()
        if key.startswith("vault_")
    }

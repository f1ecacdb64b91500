"""Predicted = applied, host by host and task by task.

The first tests compare the runs that `molecule test -s default` recorded, from bare hosts on. The
others change eight settings, each of another kind, and compare what `--check` says with what the
run that follows reports.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.system.fleet import fleet
from tests.system.fleet.fleet import members, setting
from tests.system.predictions.record import Change, changes, compare, failures, play, read

RECORD = Path(os.environ.get("PRIME_SPARK_RECORD", str(fleet.LAB / "site-runs.jsonl")))
# Keeps both cores busy; a run waits for hosts half of its time.
AT_ONCE = 3

pytestmark = pytest.mark.timeout(900)


# --- the whole site, from bare hosts --------------------------------------------------------


@pytest.fixture(scope="module")
def site_runs() -> list[list[dict[str, Any]]]:
    """The three runs of site.yml: check on bare hosts, converge, converge again."""
    if not RECORD.exists():
        pytest.skip(f"{RECORD} is not there: `make test-fleet` records it")
    runs = [run for run in read(RECORD) if run[0]["playbook"] == "site.yml"]
    assert len(runs) == 3, f"expected three runs of site.yml in {RECORD}, seen {len(runs)}"
    return runs


def test_check_mode_of_bare_hosts_fails_nowhere(site_runs: list[list[dict[str, Any]]]) -> None:
    bare = site_runs[0]
    assert failures(bare) == set()
    assert all(entry["check_mode"] for entry in bare if entry["changed"])
    # Every host and every role is in it.
    assert {entry["host"] for entry in bare} == set(members("all"))
    roles = {path.name for path in (fleet.ROOT / "roles").iterdir()}
    assert {entry["role"] for entry in bare} - {""} == roles


def test_bare_hosts_change_as_predicted(site_runs: list[list[dict[str, Any]]]) -> None:
    predicted, applied = changes(site_runs[0]), changes(site_runs[1])
    assert len(applied) > 40
    assert compare(predicted, applied) == ""


def test_a_converged_fleet_does_not_change(site_runs: list[list[dict[str, Any]]]) -> None:
    assert changes(site_runs[2]) == set()


def test_a_converged_fleet_is_predicted_not_to_change() -> None:
    assert play("--check", "--skip-tags", "verify", "-e", json.dumps({"full": True})) == set()


# --- single variables -----------------------------------------------------------------------


class Setting(NamedTuple):
    """One changed variable, the tag run that applies it, and a task that has to notice."""

    tags: str
    host: str
    variable: str
    value: Any
    task: str


(KAFKA,) = members("kafka")
(TIMESCALE,) = members("timescale")
EDGE = next(name for name in members("nas") if name != KAFKA)
SPOKE = next(
    name for name in reversed(members("wireguard")) if name not in (KAFKA, EDGE, TIMESCALE)
)


def topics(**configs: str) -> dict[str, Any]:
    """The topics, one of them with other settings."""
    wanted = json.loads(json.dumps(setting(KAFKA, "kafka", "kafka_topics")))
    wanted["edge.telemetry"]["configs"].update(configs)
    return dict(wanted)


def registries() -> list[str]:
    """The registries, and one more."""
    return [*setting(TIMESCALE, "docker", "docker_insecure_registries"), "registry.invalid:5000"]


def rights() -> list[dict[str, Any]]:
    """The rights, and one more."""
    more = {"principal": "User:telemetry", "resource_type": "TOPIC"}
    return [
        *setting(KAFKA, "kafka", "kafka_acls"),
        {**more, "name": "analytics.events", "operations": ["DESCRIBE"]},
    ]


SETTINGS = {
    "interval": Setting(
        "telemetry", EDGE, "telemetry_interval_seconds", 4,
        "python_service : Configure and run telemetry",
    ),
    "mount": Setting(
        "nas", EDGE, "nas_idle_seconds", 601,
        "nas : Mount on demand and check the share",
    ),
    "kernel": Setting(
        "common", SPOKE, "common_sysctl",
        {"net.ipv4.ip_nonlocal_bind": 1, "net.ipv4.tcp_keepalive_time": 7000},
        "common : Apply the network settings",
    ),
    "keepalive": Setting(
        "wireguard", SPOKE, "wireguard_keepalive", 24, "wireguard : Configure and run the interface"
    ),
    "memory": Setting("redis", KAFKA, "redis_max_memory", "127mb", "redis : Run Redis"),
    "topic": Setting(
        "kafka", KAFKA, "kafka_topics", topics(**{"retention.ms": "604700000"}),
        "kafka : Apply topics, users and rights",
    ),
    "right": Setting(
        "kafka", KAFKA, "kafka_acls", rights(), "kafka : Apply topics, users and rights"
    ),
    # The daemon restarts, and the containers on it with it: none of them is to be recreated.
    "daemon": Setting(
        "docker,timescale", TIMESCALE, "docker_insecure_registries", registries(),
        "docker : Configure and run the daemon",
    ),
    "connections": Setting(
        "timescale", TIMESCALE, "timescale_max_connections", 59, "timescale : Run TimescaleDB"
    ),
}  # fmt: skip
# Changes of one role on one host come one after the other, the rest at the same time.
CHAINS = [["topic", "right"], ["daemon", "connections"], ["interval", "mount"], ["memory"],
          ["kernel", "keepalive"]]  # fmt: skip


class Outcome(NamedTuple):
    """What was predicted, what was applied, and what a second run still changed."""

    predicted: set[Change]
    applied: set[Change]
    again: set[Change]


def change(name: str, given: dict[str, Any]) -> Outcome:
    """Check, apply, apply again, with the settings given so far."""
    wanted = SETTINGS[name]
    arguments = ["--tags", wanted.tags, "--limit", wanted.host, "--extra-vars", json.dumps(given)]
    return Outcome(play("--check", *arguments), play(*arguments), play(*arguments))


@pytest.fixture(scope="module")
def outcomes(request: pytest.FixtureRequest) -> Iterator[dict[str, Future[Outcome]]]:
    """Every setting that is asked for is changed; at the end one run brings all of them back."""
    assert sorted(name for chain in CHAINS for name in chain) == sorted(SETTINGS)
    asked = {item.name for item in request.session.items}
    futures: dict[str, Future[Outcome]] = {
        name: Future()
        for name in SETTINGS
        if f"test_a_changed_setting_is_predicted[{name}]" in asked
    }

    def follow(chain: list[str]) -> None:
        given: dict[str, Any] = {}
        for name in (name for name in chain if name in futures):
            given[SETTINGS[name].variable] = SETTINGS[name].value
            try:
                futures[name].set_result(change(name, given))
            except BaseException as error:
                futures[name].set_exception(error)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        for chain in CHAINS:
            pool.submit(follow, chain)
        try:
            yield futures
        finally:
            wait(futures.values())
            if not RETURNED:
                play("--skip-tags", "verify")


RETURNED: list[bool] = []


@pytest.mark.parametrize("name", SETTINGS)
def test_a_changed_setting_is_predicted(name: str, outcomes: dict[str, Future[Outcome]]) -> None:
    outcome = outcomes[name].result()
    wanted = SETTINGS[name]
    assert compare(outcome.predicted, outcome.applied) == ""
    assert (wanted.host, wanted.task) in outcome.applied
    assert outcome.again == set(), "a second run changes something again"


def test_the_way_back_is_predicted_for_the_whole_fleet(
    outcomes: dict[str, Future[Outcome]],
) -> None:
    wait(outcomes.values())
    predicted = play("--check", "--skip-tags", "verify")
    applied = play("--skip-tags", "verify")
    RETURNED.append(True)
    assert compare(predicted, applied) == ""
    assert {(wanted.host, wanted.task) for wanted in SETTINGS.values()} <= applied

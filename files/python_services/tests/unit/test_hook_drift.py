"""Drift on a schedule: when it is looked for, what is kept of it, and how it is mended."""

from __future__ import annotations

import json
import time
from pathlib import Path

import msgspec
import pytest
from prometheus_client import CollectorRegistry

from prime_spark.hook.drift import Drift, Report
from prime_spark.hook.metrics import HookMetrics
from prime_spark.hook.people import People, Person
from prime_spark.hook.queue import DecisionError, Queue
from prime_spark.hook.rules import Action, Rules, Schedule, read_rules
from prime_spark.hook.schedule import Clock
from prime_spark.runtime.health import Health

ALICE = Person("alice", "192.0.2.7")
DAY = 86400.0


@pytest.fixture
def queue(tmp_path: Path) -> Queue:
    return Queue(tmp_path / "queue.sqlite", max_queued=2)


def rules() -> Rules:
    drift = {"playbook": "playbooks/drift.yml", "report": "drift"}
    document = {
        "sources": [{"name": "fleet", "kind": "git"}],
        "playbooks": ["site.yml", "playbooks/drift.yml"],
        "rules": [],
        "schedules": [{"name": "drift", "every_seconds": 600, "run": drift}],
        "mend": {"playbook": "site.yml", "approval": "required", "approval_seconds": 60},
    }
    return read_rules(json.dumps(document), "rules.yml")


def report(**hosts: str) -> Report:
    """What playbooks/drift.yml writes, with one role on each host."""
    content = {
        host: {"state": state, "roles": {"api": {"state": state, "why": ["/etc/x: changed"]}}}
        for host, state in hosts.items()
    }
    summary = {"drifted": 1}
    return msgspec.json.decode(json.dumps({"hosts": content, "summary": summary}), type=Report)


def test_a_schedule_is_due_after_its_interval_and_once_after_a_pause(queue: Queue) -> None:
    health = Health("hook")
    clock = Clock(rules(), queue, health=health, wake=lambda: None)
    now = time.time()
    assert [clock.look(now), clock.look(now + 599)] == [0, 0]
    assert [clock.look(now + 600), clock.look(now + 601)] == [1, 0]
    (run,) = queue.pending()
    assert (run.rule, run.triggered_by) == ("drift", "schedule:drift")
    assert run.job is not None
    assert run.job.report == "drift"
    queue.end(run.id, "succeeded")
    # The hook was down for a day; what it knows is on the disk.
    clock = Clock(rules(), queue, health=health, wake=lambda: None)
    assert [clock.look(now + DAY), clock.look(now + DAY + 599)] == [1, 0]
    # It waits already.
    clock.look(now + DAY + 600)
    assert len(queue.pending()) == 1
    # Somebody has set the clock back.
    assert [clock.look(now), clock.look(now + 599), clock.look(now + 600)] == [0, 0, 1]


def test_what_is_due_and_has_no_room_stays_due(queue: Queue) -> None:
    health = Health("hook")
    clock = Clock(rules(), queue, health=health, wake=lambda: None)
    clock.look(1000.0)
    drift = rules().scheduled("drift")
    assert drift is not None
    for tag in "ab":
        queue.put(msgspec.structs.replace(drift, tags=[tag]), "user:x")
    assert clock.look(1600.0) == 0
    assert not health.is_ok("schedules")
    queue.cancel(1)
    assert clock.look(1601.0) == 1
    assert health.is_ok("schedules")


def test_each_day_at_a_time_of_this_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        run = {"playbook": "site.yml"}
        schedule = msgspec.convert({"name": "x", "at": "03:30", "run": run}, Schedule)

        def at(text: str) -> float:
            return time.mktime(time.strptime(text, "%Y-%m-%d %H:%M"))

        assert schedule.next(at("2026-11-30 03:29")) == at("2026-11-30 03:30")
        assert schedule.next(at("2026-11-30 03:30")) == at("2026-12-01 03:30")
        # A day of 23 hours.
        assert schedule.next(at("2026-03-28 03:30")) == at("2026-03-29 03:30")
    finally:
        monkeypatch.undo()
        time.tzset()


def test_reports_are_kept_by_host_and_a_host_that_is_gone_is_forgotten(queue: Queue) -> None:
    drift = Drift(queue)
    new = drift.store(1, 10.0, report(h1="in sync", h2="drifted", h3="unreachable"), whole=True)
    assert [each.host for each in new] == ["h2", "h3"]
    # The same once more, as after a restart before the run was noted as ended.
    drift.store(1, 10.0, report(h1="in sync", h2="drifted", h3="unreachable"), whole=True)
    assert [each.host for each in drift.store(2, 20.0, report(h2="in sync"), whole=False)] == ["h2"]
    assert [(each.host, each.state) for each in drift.latest()] == [
        ("h1", "in sync"),
        ("h2", "in sync"),
        ("h3", "unreachable"),
    ]
    assert [(each.run, each.state) for each in drift.history("h2")] == [
        (2, "in sync"),
        (1, "drifted"),
    ]
    registry = CollectorRegistry()
    HookMetrics(registry).show_drift(drift.latest())
    hosts = "prime_spark_hook_drift_hosts"
    assert registry.get_sample_value(hosts, {"state": "in_sync"}) == 2
    assert registry.get_sample_value(hosts, {"state": "unreachable"}) == 1
    assert registry.get_sample_value("prime_spark_hook_drift_report_timestamp_seconds") == 20.0
    drift.store(3, 30.0, report(h1="drifted"), whole=True)
    assert [each.host for each in drift.latest()] == ["h1"]
    assert drift.history("h2") == []


def test_of_each_host_a_bounded_number_of_reports_of_a_bounded_size(queue: Queue) -> None:
    drift = Drift(queue)
    for run in range(1, 106):
        drift.store(run, float(run), report(h1="drifted"), whole=True)
    assert [each.run for each in drift.history("h1", 999)] == [*range(105, 5, -1)]
    long = report(h1="drifted")
    long.hosts["h1"].roles["api"].why[:] = ["x" * 10**6] * 10**3
    drift.store(200, 200.0, long, whole=True)
    assert sum(map(len, drift.latest()[0].roles["api"].why)) == 50 * 500
    with pytest.raises(msgspec.ValidationError):
        report(**{f"h{number}": "in sync" for number in range(1001)})


def test_what_has_drifted_is_mended_by_a_plan_for_that_host_and_role(queue: Queue) -> None:
    people = People(queue, rules())
    with pytest.raises(DecisionError, match="no report of drift has role 'api' of host 'h1'"):
        people.mend(ALICE, "h1", "api")
    people.drift.store(1, 10.0, report(h1="drifted", **{"h2,h3": "drifted"}), whole=True)
    run = queue.get(people.mend(ALICE, "h1", "api"))
    assert run is not None
    assert run.job is not None
    assert run.job.arguments() == [
        "--check",
        "--diff",
        "--tags",
        "api",
        "--limit",
        "h1",
        "site.yml",
    ]
    assert (run.job.plans, run.triggered_by) == (True, "user:alice")
    with pytest.raises(DecisionError, match="is not the name of one host"):
        people.mend(ALICE, "h2,h3", "api")


def test_a_person_starts_what_has_a_schedule_and_nothing_else(queue: Queue) -> None:
    people = People(queue, rules())
    assert people.start(ALICE, "drift") == 1
    with pytest.raises(DecisionError, match="no schedule 'mend'"):
        people.start(ALICE, "mend")
    queue.end(1, "succeeded")
    document = rules()
    without = msgspec.structs.replace(document, schedules=[])
    with pytest.raises(DecisionError, match="the rules no longer have 'drift'"):
        People(queue, without).again(ALICE, 1)
    assert people.again(ALICE, 1) == 2


@pytest.mark.parametrize("change", [{"approval": "required"}, {"check": True}])
def test_a_run_from_before_its_rule_became_stricter_is_not_run_again(
    change: dict[str, object], queue: Queue
) -> None:
    document = rules()
    (schedule,) = document.schedules
    before, after = (
        msgspec.structs.replace(
            document,
            schedules=[msgspec.structs.replace(schedule, run=Action("site.yml", **values))],
        )
        for values in ({}, change)
    )
    run = People(queue, before).start(ALICE, "drift")
    queue.end(run, "succeeded")
    with pytest.raises(DecisionError, match="by now"):
        People(queue, after).again(ALICE, run)
    assert queue.pending() == []
    # What has been as strict is.
    run = People(queue, after).start(ALICE, "drift")
    queue.end(run, "succeeded")
    assert People(queue, after).again(ALICE, run) == run + 1

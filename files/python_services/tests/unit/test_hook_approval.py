"""Plans: what their hash is of, who may decide about one, how often and until when."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import structlog
from msgspec.structs import replace
from test_hook_queue import job

from prime_spark.hook.people import People, Person
from prime_spark.hook.plan import Plan, Planner
from prime_spark.hook.queue import DecisionError, Queue, Run
from prime_spark.hook.rules import Job, Rules

PLANNED = replace(job(), approval_seconds=60.0, commit="a" * 40)


@pytest.fixture
def queue(tmp_path: Path) -> Queue:
    return Queue(tmp_path / "queue.sqlite", max_queued=3)


def get(queue: Queue, run: int) -> Run:
    found = queue.get(run)
    assert found is not None
    return found


def waits(queue: Queue, wanted: Job = PLANNED, plan_hash: str = "hash") -> int:
    run = queue.put(wanted, "user:x").run
    assert queue.start(run, ["h1"])
    assert queue.wait_approval(run, plan_hash, 1)
    return run


# -- what is approved ---------------------------------------------------------------------------


def change(host: str = "h1", *, task: str = "1", **result: Any) -> dict[str, Any]:
    diff = {"before": "a\n", "after": "b\n", "before_header": "/etc/x", "after_header": "/tmp/r4nd"}
    data = {"host": host, "task": "Write", "task_uuid": task, "task_path": "/c/1/roles/x.yml:3"}
    data["task_action"] = "copy"
    return {
        "event": "runner_on_ok",
        "event_data": {**data, "res": {"changed": True, "diff": diff, **result}},
    }


def planned(*events: dict[str, Any], checkout: str = "/c/1", revision: str = "r") -> Plan:
    planner = Planner(checkout, revision)
    for event in events:
        planner.take(event)
    return planner.plan()


def stats(**changed: int) -> dict[str, Any]:
    return {"event": "playbook_on_stats", "event_data": {"changed": changed}}


def test_a_plan_has_the_same_hash_wherever_whenever_and_in_whatever_order_it_was_made() -> None:
    seen = planned(change("h1"), change("h2"))
    assert seen.total == 2
    assert seen.hosts == {"h1": 1, "h2": 1}
    assert seen.changes[0].path == "roles/x.yml:3"
    assert "-a\n+b" in seen.changes[0].diff
    elsewhere = change("h1")
    elsewhere["event_data"]["task_path"] = "/c/2/roles/x.yml:3"
    elsewhere["event_data"]["task_uuid"] = "other"
    elsewhere["event_data"]["res"]["diff"]["after_header"] = "/tmp/0ther"
    other = change("h2")
    other["event_data"]["task_path"] = "/c/2/roles/x.yml:3"
    assert planned(other, elsewhere, checkout="/c/2").hash == seen.hash
    touch = [
        change(diff={"before": {"mtime": at}, "after": {"mtime": at + 1, "state": "touch"}})
        for at in (1.0, 2.0)
    ]
    assert planned(touch[0]).hash == planned(touch[1]).hash


def test_a_checkout_behind_a_link_is_no_other_one(tmp_path: Path) -> None:
    (tmp_path / "worktrees").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "worktrees")
    seen = change()
    seen["event_data"]["task_path"] = f"{tmp_path}/worktrees/roles/x.yml:3"
    assert planned(seen, checkout=f"{tmp_path}/link").hash == planned(change()).hash


@pytest.mark.parametrize(
    "events",
    [
        (),
        (change("h2"),),
        (change(), change()),
        (change(diff={"before": "a\n", "after": "c\n"}),),
        (change(diff={"before": "a\n", "after": "b\n" + "x" * 30_000}),),
        (change(), stats(h1=2)),
    ],
)
def test_what_is_not_the_same_change_has_another_hash(events: tuple[dict[str, Any], ...]) -> None:
    assert planned(*events).hash != planned(change()).hash
    assert planned(change(), revision="other").hash != planned(change()).hash


def test_what_is_cut_is_in_the_hash_all_the_same() -> None:
    long = "x\n" * 30_000
    one, other = (planned(change(diff={"prepared": long + end})) for end in "ab")
    assert one.changes == other.changes
    assert one.changes[0].cut
    assert len(one.changes[0].diff) == 20_000
    assert one.hash != other.hash
    many = planned(*[change(item=str(n)) for n in range(3000)])
    assert (many.total, len(many.changes)) == (3000, 2000)


def test_of_a_loop_each_item_is_a_change_and_no_log_hides_which_tasks_are() -> None:
    items = [change(item=name) for name in "xy"]
    for item in items:
        item["event"] = "runner_item_on_ok"
    whole = change(results=[{"changed": True}] * 2)
    hidden = {"event": "runner_on_ok", "event_data": {"host": "h1", "res": {"censored": "..."}}}
    plan = planned(*items, whole, hidden, stats(h1=2))
    assert [each.item for each in plan.changes] == ["x", "y"]
    assert (plan.hidden, plan.total, plan.hosts) == ({"h1": 1}, 3, {"h1": 3})


# -- who approves -------------------------------------------------------------------------------


def test_an_approval_is_for_one_plan_and_counts_once(queue: Queue) -> None:
    run = waits(queue)
    assert queue.active() == [], "hosts are not locked while somebody thinks"
    with pytest.raises(DecisionError, match="another plan"):
        queue.approve(run, "mallory", "other")
    applies = queue.approve(run, "alice", "hash")
    for decide in (queue.approve, queue.reject):
        with pytest.raises(DecisionError, match="approved by alice"):
            decide(run, "bob", "hash")
    assert not queue.cancel(run)
    approved, applying = get(queue, run), get(queue, applies)
    assert (approved.state, approved.decided_by, approved.applied) == ("approved", "alice", applies)
    assert (applying.applies, applying.triggered_by) == (run, "user:alice")
    assert applying.job is not None
    assert applying.job.commit == PLANNED.commit
    assert (applying.job.plans, applying.job.arguments()) == (False, ["site.yml"])
    assert PLANNED.arguments() == ["--check", "--diff", "site.yml"]


def test_a_plan_that_is_rejected_cancelled_or_too_old_is_not_applied(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    rejected, cancelled = waits(queue), waits(queue, replace(PLANNED, limit="h1"))
    queue.reject(rejected, "alice")
    assert queue.cancel(cancelled, "alice")
    late = waits(queue, replace(PLANNED, limit="h2"))
    assert queue.expire() == []
    expires = get(queue, late).expires
    monkeypatch.setattr("time.time", lambda: expires)
    with pytest.raises(DecisionError, match="expired"):
        queue.approve(late, "alice", "hash")
    assert [run.id for run in queue.expire()] == [late]
    states = [get(queue, run).state for run in (rejected, cancelled, late)]
    assert states == ["rejected", "cancelled", "expired"]
    for run in (rejected, cancelled, late, 99):
        with pytest.raises(DecisionError):
            queue.approve(run, "alice", "hash")
    assert queue.pending() == []


def test_a_newer_plan_of_the_same_takes_the_place_of_an_older_one(queue: Queue) -> None:
    old, other = waits(queue), waits(queue, replace(PLANNED, limit="h1"))
    new = waits(queue, replace(PLANNED, commit="b" * 40))
    assert get(queue, old).state == "expired"
    assert [run.id for run in queue.waiting()] == [other, new]
    # As many as may be queued.
    more = [waits(queue, replace(PLANNED, limit=limit)) for limit in ("h2", "h3")]
    assert [run.id for run in queue.waiting()] == [new, *more]


_APPROVES = """
import sys
from pathlib import Path
from prime_spark.hook.queue import DecisionError, Queue
queue = Queue(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
try:
    print(queue.approve(1, sys.argv[2], "hash"))
except DecisionError as error:
    print(error)
"""


def test_two_people_approve_at_once_and_one_run_starts(queue: Queue, tmp_path: Path) -> None:
    assert waits(queue) == 1
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _APPROVES, str(tmp_path / "queue.sqlite"), name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        for name in ("alice", "bob")
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    said = sorted(process.communicate()[0].strip() for process in processes)
    by = get(queue, 1).decided_by
    assert said == ["2", f"run 1 does not wait for approval: approved by {by}"]
    assert [run.id for run in queue.pending()] == [2]


# -- again --------------------------------------------------------------------------------------


def test_again_is_the_same_run_and_of_an_applied_one_a_new_plan(queue: Queue) -> None:
    run = queue.approve(waits(queue), "alice", "hash")
    with pytest.raises(DecisionError, match="has not ended"):
        queue.again(run, False, "bob")
    assert queue.start(run, ["h1", "h2", "h3"])
    with pytest.raises(DecisionError, match="is known to have failed"):
        queue.again(waits_ended(queue, run), True, "bob")
    again = get(queue, queue.again(run, False, "bob").run)
    assert again.job == PLANNED
    assert (again.again_of, again.triggered_by) == (run, "user:bob")


def waits_ended(queue: Queue, run: int) -> int:
    queue.end(run, "lost")
    return run


def test_again_for_the_hosts_alone_that_failed(queue: Queue) -> None:
    run = queue.put(job(), "user:x").run
    queue.start(run, ["h1", "h2", "h3"])
    queue.end(run, "failed", results={"h1": "failed", "h2": "changed", "h3": "unreachable"})
    again = get(queue, queue.again(run, True, "bob").run)
    assert again.job is not None
    assert again.job.limit == "h1,h3"


@pytest.mark.parametrize("name", ["h*", "h1:h2", "!h1", "h1,h2", "-h1"])
def test_again_for_a_host_whose_name_means_others_is_refused(name: str, queue: Queue) -> None:
    run = queue.put(job(), "user:x").run
    queue.start(run, [name])
    queue.end(run, "failed", results={name: "failed"})
    with pytest.raises(DecisionError, match="make no limit"):
        queue.again(run, True, "bob")


def test_what_a_person_does_is_a_line_in_the_journal(queue: Queue) -> None:
    rules = Rules(sources=[], playbooks=["site.yml"], rules=[])
    woken: list[None] = []
    people = People(queue, rules, wake=lambda: woken.append(None))
    run = waits(queue)
    alice = Person("alice", "192.0.2.7")
    with structlog.testing.capture_logs() as lines:
        started = people.approve(alice, run, "hash")
        with pytest.raises(DecisionError):
            people.reject(alice, run)
    act = {"audit": "act", "user": "alice", "client": "192.0.2.7", "log_level": "info", "run": run}
    refused = f"run {run} does not wait for approval: approved by alice"
    assert lines == [
        act | {"event": "approve", "refused": "", "started": started},
        act | {"event": "reject", "refused": refused},
    ]
    assert woken == [None]


def test_what_could_not_be_stored_is_no_act_in_the_journal(queue: Queue) -> None:
    people = People(queue, Rules(sources=[], playbooks=["site.yml"], rules=[]))
    run = waits(queue)
    with queue.transaction() as db:
        db.execute("PRAGMA query_only = 1")
    with structlog.testing.capture_logs() as lines, pytest.raises(sqlite3.Error):
        people.approve(Person("alice", "192.0.2.7"), run, "hash")
    assert [line["refused"].partition(":")[0] for line in lines] == ["not stored"]

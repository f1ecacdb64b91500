"""The hook's queue: what was accepted is kept, each event once, each host in one run at most."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from prime_spark.hook.queue import FullError, Queue, Taken
from prime_spark.hook.rules import Job, Priority


@pytest.fixture
def queue(tmp_path: Path) -> Queue:
    return Queue(tmp_path / "queue.sqlite", max_queued=3, max_deliveries=10)


def job(rule: str = "deploy", priority: Priority = "normal") -> Job:
    return Job(
        rule=rule,
        playbook="site.yml",
        tags=[],
        limit=None,
        check=False,
        priority=priority,
        timeout_seconds=60.0,
        variables={},
    )


def take(queue: Queue, key: str, rule: str = "deploy", priority: Priority = "normal") -> Taken:
    (taken,) = queue.accept("github", [((key,), job(rule, priority))])
    return taken


def test_identical_runs_that_wait_are_one_and_know_their_deliveries(queue: Queue) -> None:
    first = take(queue, "a")
    assert first.how == "new"
    assert take(queue, "b") == Taken(first.run, "coalesced")
    assert take(queue, "c", "other").run != first.run
    assert queue.deliveries(first.run) == ["github/a", "github/b"]
    # What has begun does not see what comes now.
    assert queue.start(first.run, ["h1"])
    assert take(queue, "d").how == "new"


def test_an_event_is_taken_once_under_any_of_its_keys(queue: Queue) -> None:
    (taken,) = queue.accept("github", [(("id:1", "sha256:x"), job())])
    assert queue.accept("github", [(("id:2", "sha256:x"), job())]) == [Taken(taken.run, "repeated")]
    assert take(queue, "id:1", "other") == Taken(taken.run, "repeated")
    queue.end(taken.run, "succeeded")
    assert take(queue, "id:1").how == "repeated"
    # Another source has ids of its own.
    assert queue.accept("gitlab", [(("id:1",), job())])[0].how == "new"


def test_a_full_queue_takes_nothing_of_a_delivery_and_knows_it_later(queue: Queue) -> None:
    for number in range(2):
        take(queue, str(number), f"rule-{number}")
    two = [(("x",), job("rule-x")), (("y",), job("rule-y"))]
    with pytest.raises(FullError):
        queue.accept("github", two)
    assert len(queue.pending()) == 2
    take(queue, "2", "rule-2")
    # What waits already needs no room.
    assert take(queue, "3", "rule-0").how == "coalesced"
    for run in queue.pending():
        queue.end(run.id, "succeeded")
    assert [taken.how for taken in queue.accept("github", two)] == ["new", "new"]


def test_deliveries_are_kept_up_to_a_number_the_newest(queue: Queue) -> None:
    for number in range(15):
        take(queue, str(number))
    assert take(queue, "14").how == "repeated"
    assert len(queue.deliveries(1)) == 10


def test_priorities_then_the_order_of_arrival(queue: Queue) -> None:
    runs = [take(queue, p, p, p).run for p in ("low", "normal", "high")]  # type: ignore[arg-type]
    assert [run.id for run in queue.pending()] == list(reversed(runs))


def test_a_host_is_in_one_run_at_most(queue: Queue) -> None:
    one, two, three = (take(queue, name, name).run for name in ("a", "b", "c"))
    assert queue.start(one, ["h1", "h2"])
    assert not queue.start(one, ["h3"]), "started twice"
    assert not queue.start(two, ["h2", "h3"])
    assert queue.start(three, ["h3"])
    assert [run.hosts for run in queue.active()] == [["h1", "h2"], ["h3"]]
    queue.end(one, "lost")
    assert queue.start(two, ["h2"])


def test_a_run_ends_once(queue: Queue) -> None:
    run = take(queue, "a").run
    assert queue.start(run, ["h1"])
    assert queue.running(run)
    assert queue.end(run, "failed", "h1 failed")
    assert not queue.end(run, "succeeded")
    assert not queue.running(run)
    assert not queue.cancel(run)
    kept = queue.get(run)
    assert kept is not None
    assert (kept.state, kept.reason, kept.active) == ("failed", "h1 failed", False)


def test_cancel_ends_what_waits_and_asks_what_runs(queue: Queue) -> None:
    waits, runs = take(queue, "a", "a").run, take(queue, "b", "b").run
    assert queue.cancel(waits)
    assert not queue.start(waits, ["h1"])
    assert queue.start(runs, ["h1"])
    assert queue.cancel(runs)
    (active,) = queue.active()
    assert active.cancel
    assert queue.counts() == {"cancelled": 1, "starting": 1}


def test_the_newest_of_what_has_ended_are_kept(queue: Queue) -> None:
    for number in range(6):
        run = take(queue, str(number)).run
        if number != 2:
            queue.end(run, "succeeded", ended=float(number))
        else:
            queue.start(run, ["h"])
    assert sorted(queue.prune(keep=2)) == [1, 2, 4]
    assert [run.id for run in queue.newest(10)] == [6, 5, 3]


def test_runs_that_never_started_push_out_none_that_did(queue: Queue) -> None:
    for number in range(4):
        run = take(queue, str(number)).run
        if number == 0:
            queue.start(run, ["h"])
        queue.end(run, "skipped", ended=float(number))
    assert sorted(queue.prune(keep=2)) == [2]
    assert [run.id for run in queue.started_within("deploy", 3600.0)] == [1]


def test_many_at_once_make_one_run_of_each_kind(queue: Queue) -> None:
    with ThreadPoolExecutor(8) as pool:
        taken = list(pool.map(lambda n: take(queue, str(n), f"rule-{n % 3}"), range(9)))
    assert sorted(each.how for each in taken) == ["coalesced"] * 6 + ["new"] * 3
    assert len({each.run for each in taken}) == 3


_ACCEPTS = """
import sys
from pathlib import Path
from test_hook_queue import take
from prime_spark.hook.queue import Queue
queue = Queue(Path(sys.argv[1]))
for number in range(10**6):
    take(queue, str(number), f"rule-{number % 500}")
    print(number, flush=True)
"""


def test_what_was_accepted_survives_kill_9(tmp_path: Path) -> None:
    path = tmp_path / "queue.sqlite"
    process = subprocess.Popen(
        [sys.executable, "-c", _ACCEPTS, str(path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert process.stdout is not None
    said = [process.stdout.readline() for _ in range(40)]
    process.send_signal(signal.SIGKILL)
    said += process.stdout.readlines()
    process.wait()
    queue = Queue(path)
    for line in said:
        assert take(queue, line.strip(), "whatever").how == "repeated"
    assert len(queue.pending()) >= len(said)


def test_a_full_disk_is_called_so(queue: Queue) -> None:
    with queue.transaction() as db:
        (pages,) = db.execute("PRAGMA page_count").fetchone()
        db.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(sqlite3.Error, match="is full"):
        queue.remember("x", ["x" * 100_000])
    assert queue.remember("x", ["y"]) is None

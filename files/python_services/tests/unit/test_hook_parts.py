"""Parts of the hook that need no playbook: brakes, verdicts, claims, processes."""

from __future__ import annotations

import io
import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
import structlog
from prometheus_client import CollectorRegistry
from test_hook_queue import job

from prime_spark.hook.directory import Order, Result, RunDirectory
from prime_spark.hook.metrics import HookMetrics
from prime_spark.hook.plan import Plan, Planner
from prime_spark.hook.queue import Ended, HostResult, Queue
from prime_spark.hook.rules import Job, Remediation
from prime_spark.hook.runner import _Events, environment, write_wrappers
from prime_spark.hook.scheduler import Scheduler
from prime_spark.hook.service import open_queue
from prime_spark.hook.settings import AnsibleConfig, HookConfig, HttpConfig, LimitsConfig
from prime_spark.hook.starter import StartError
from prime_spark.runtime.health import Health

ANSIBLE = AnsibleConfig(checkout="/c", inventory="i", programs="/opt/ansible/bin")


class Starts:
    """Notes what is to be started, and can refuse."""

    def __init__(self) -> None:
        self.started: list[int] = []
        self.stopped: list[int] = []
        self.refuses = False

    def start(self, directory: RunDirectory) -> None:
        if self.refuses:
            raise StartError("no")
        self.started.append(directory.order().run)

    def stop(self, directory: RunDirectory) -> None:
        self.stopped.append(directory.order().run)

    def end(self, directory: RunDirectory) -> list[int]:
        return []


class Parts:
    def __init__(self, folder: Path, kept_runs: int = 1) -> None:
        config = HookConfig(
            http=HttpConfig(host="127.0.0.1", port=1),
            rules="/r",
            ansible=ANSIBLE,
            state=str(folder),
            limits=LimitsConfig(parallel_runs=2, kept_runs=kept_runs, kept_bytes=6000),
        )
        self.queue = Queue(folder / "queue.sqlite")
        self.starter = Starts()
        self.registry = CollectorRegistry()
        metrics = HookMetrics(self.registry, ["deploy"])
        self.health = Health("hook")
        self.beats = 0
        self.scheduler = Scheduler(
            config, self.queue, self.starter, metrics, health=self.health, beat=self.beat
        )
        self.runs = folder / "runs"

    def beat(self) -> None:
        self.beats += 1

    def hosts(self, limit: str | None, *hosts: str) -> None:
        """Say which hosts a limit means."""
        self.scheduler._hosts[None, "site.yml", limit] = (10.0**12, frozenset(hosts))

    def metric(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, labels)

    def put(self, key: str, **change: object) -> int:
        wanted = Job(**{**{name: getattr(job(), name) for name in Job.__struct_fields__}, **change})
        (taken,) = self.queue.accept("x", [((key,), wanted)])
        return taken.run

    def state(self, run: int) -> tuple[str, str]:
        found = self.queue.get(run)
        assert found is not None
        return found.state, found.reason


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    return Parts(tmp_path)


def test_what_waits_for_a_host_keeps_later_runs_from_it(parts: Parts) -> None:
    parts.hosts("a", "h1")
    parts.hosts("all", "h1", "h2")
    parts.hosts("b", "h2")
    parts.hosts("c", "h3")
    runs = [parts.put(name, limit=name) for name in ("a", "all", "b", "c")]
    parts.scheduler.start_what_can()
    assert parts.starter.started == [runs[0], runs[3]]
    parts.queue.end(runs[0], "succeeded")
    parts.scheduler.start_what_can()
    assert parts.starter.started == [runs[0], runs[3], runs[1]]


def test_no_more_runs_at_a_time_than_are_allowed(parts: Parts) -> None:
    for name in "abc":
        parts.hosts(name, name)
        parts.put(name, limit=name)
    parts.scheduler.start_what_can()
    assert len(parts.starter.started) == 2


def test_each_pending_run_is_a_heartbeat(parts: Parts) -> None:
    parts.hosts("a", "h1")
    for key in "abc":
        parts.put(key, limit="a", tags=[key])
    parts.scheduler.start_what_can()
    assert parts.beats == 3


def test_what_cannot_be_written_is_told_once_and_tried_again(parts: Parts) -> None:
    parts.hosts(None, "h1")
    run = parts.put("a")
    parts.runs.write_text("no directory")
    with structlog.testing.capture_logs() as lines:
        for _ in range(2):
            parts.scheduler.guarded("starting runs", parts.scheduler.start_what_can)
            assert parts.health.status == "failing"
    assert [line["log_level"] for line in lines] == ["error"]
    parts.runs.unlink()
    parts.scheduler.guarded("starting runs", parts.scheduler.start_what_can)
    assert parts.health.status == "ok"
    assert parts.state(run)[0] == "starting"
    parts.queue.close()
    assert not parts.scheduler.guarded("following runs", parts.scheduler.look)
    assert not parts.health.is_ok("following runs")


def test_brakes(parts: Parts) -> None:
    parts.hosts("a", "h1")
    parts.hosts("b", "h2")
    brakes = Remediation(cooldown_seconds=60.0, max_runs=2, window_seconds=600.0)

    def play(key: str, limit: str, moment: str) -> tuple[str, str]:
        run = parts.put(key, limit=limit, remediation=brakes, variables={"moment": moment})
        parts.scheduler.start_what_can()
        state = parts.state(run)
        if state[0] == "starting":
            parts.queue.end(run, "succeeded")
        return state

    assert play("1", "a", "1")[0] == "starting"
    assert play("2", "a", "2") == ("skipped", "run 1 was on h1 within 60 s")
    assert play("3", "b", "3")[0] == "starting"
    # Of one rule, whatever the host.
    parts.hosts("c", "h3")
    assert play("4", "c", "4") == ("skipped", "2 runs of the rule within 600 s")


def test_a_clock_that_was_ahead_leaves_no_brake(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts.hosts("a", "h1")
    now = time.time()
    states = []
    for clock in (now + 365 * 86400, now, now + 1):
        monkeypatch.setattr("time.time", lambda clock=clock: clock)
        brakes = Remediation(cooldown_seconds=60.0, max_runs=1)
        run = parts.put(str(clock), limit="a", remediation=brakes, variables={"at": str(clock)})
        parts.scheduler.start_what_can()
        states.append(parts.state(run)[0])
        parts.queue.end(run, "succeeded")
    assert states == ["starting", "starting", "skipped"]


def test_a_breaker_opens_after_two_failures_in_a_row_until_somebody_resets_it(
    parts: Parts,
) -> None:
    parts.hosts("a", "h1", "h2")
    parts.hosts("b", "h2")
    brakes = Remediation(cooldown_seconds=0.0001, max_runs=99)
    numbers = iter(range(99))

    def play(limit: str, state: Ended, **results: HostResult) -> tuple[str, str]:
        moment = {"moment": next(numbers)}
        run = parts.put(str(moment), limit=limit, remediation=brakes, variables=moment)
        parts.scheduler.start_what_can()
        if parts.state(run)[0] == "starting":
            parts.queue.end(run, state, results=results)
        return parts.state(run)

    play("a", "failed", h1="failed", h2="ok")
    play("a", "succeeded", h1="changed", h2="ok")
    play("a", "failed", h1="failed", h2="ok")
    # A person's wish to end a run says nothing about the host.
    play("a", "cancelled")
    assert parts.queue.breakers() == []
    play("a", "lost")
    breaker = parts.queue.breakers()
    assert [(each.rule, each.host) for each in breaker] == [("deploy", "h1")]
    with structlog.testing.capture_logs() as lines:
        for _ in range(2):
            parts.scheduler.look()
    assert [(line["log_level"], line["host"]) for line in lines] == [("error", "h1")]
    assert parts.metric("prime_spark_hook_breakers_open", rule="deploy") == 1
    reason = "breaker: 2 runs in a row failed on h1; prime-spark-hook reset deploy h1"
    assert play("a", "succeeded") == ("skipped", reason)
    assert play("b", "succeeded")[0] == "succeeded"
    assert parts.queue.reset("deploy", "h1")
    assert not parts.queue.reset("deploy", "h1")
    parts.scheduler.look()
    assert parts.metric("prime_spark_hook_breakers_open", rule="deploy") == 0
    assert play("a", "succeeded")[0] == "succeeded"


def test_a_plan_waits_and_holds_no_host_until_it_is_applied(tmp_path: Path) -> None:
    parts = Parts(tmp_path, kept_runs=9)
    parts.hosts(None, "h1")
    run = parts.put("a", approval_seconds=60.0, remediation=Remediation(cooldown_seconds=60.0))
    parts.scheduler.start_what_can()
    planner = Planner("/c", "")
    planner.take({"event": "playbook_on_stats", "event_data": {"changed": {"h1": 2}}})
    plan = planner.plan()

    def ends(number: int) -> None:
        directory = RunDirectory(parts.runs / str(number))
        directory.write_plan(plan)
        claim = directory.claim()
        assert claim is not None
        directory.finish(Result(state="succeeded", reason="", ended=1.0))
        claim.release()
        parts.scheduler.look()

    ends(run)
    assert parts.state(run)[0] == "waiting_approval"
    assert parts.metric("prime_spark_hook_runs", state="waiting_approval") == 1
    # Also after a restart.
    again = Parts(parts.runs.parent)
    again.scheduler.look()
    assert again.state(run)[0] == "waiting_approval"
    other = parts.put("b")
    parts.scheduler.start_what_can()
    assert parts.state(other)[0] == "starting"
    parts.queue.end(other, "succeeded")
    applies = parts.queue.approve(run, "alice", plan.hash)
    parts.scheduler.start_what_can()
    assert parts.state(applies)[0] == "starting", "no cooldown keeps what a person has approved"
    ends(applies)
    assert parts.state(applies) == ("succeeded", "")


def test_a_plan_that_would_change_nothing_waits_for_nobody(parts: Parts) -> None:
    parts.hosts(None, "h1")
    run = parts.put("a", approval_seconds=60.0)
    parts.scheduler.start_what_can()
    directory = RunDirectory(parts.runs / str(run))
    claim = directory.claim()
    assert claim is not None
    directory.write_plan(Planner("/c", "").plan())
    directory.finish(Result(state="succeeded", reason="", ended=1.0))
    claim.release()
    parts.scheduler.look()
    assert parts.state(run) == ("succeeded", "nothing would change")


def test_a_plan_of_a_run_that_is_to_end_waits_for_nobody(parts: Parts) -> None:
    parts.hosts(None, "h1")
    run = parts.put("a", approval_seconds=60.0)
    parts.scheduler.start_what_can()
    parts.queue.cancel(run, "alice")
    directory = RunDirectory(parts.runs / str(run))
    claim = directory.claim()
    assert claim is not None
    directory.write_plan(Plan(hash="x", revision="", total=1, hosts={}, hidden={}, changes=[]))
    directory.finish(Result(state="succeeded", reason="", ended=1.0))
    claim.release()
    parts.scheduler.look()
    assert parts.state(run) == ("cancelled", "before it was applied")
    assert parts.queue.waiting() == []


def test_after_a_restart_what_was_starting_is_started_and_claimed_once(parts: Parts) -> None:
    parts.hosts(None, "h1")
    run = parts.put("a")
    parts.scheduler.start_what_can()
    parts.scheduler.look()
    assert parts.starter.started == [run], "it may be on its way"
    again = Parts(parts.runs.parent)
    again.scheduler.look()
    assert again.starter.started == [run]
    directory = RunDirectory(parts.runs / str(run))
    claim = directory.claim()
    assert claim is not None
    assert directory.claim() is None
    again.scheduler.look()
    assert parts.state(run)[0] == "running"
    directory.finish(Result(state="succeeded", reason="", ended=1.0))
    assert directory.status() == "alive", "it has not ended while its process lives"
    claim.release()
    assert again.scheduler.look()
    assert parts.state(run) == ("succeeded", "")


def test_a_process_that_does_not_start_fails_the_run_and_can_start_no_more(parts: Parts) -> None:
    parts.hosts(None, "h1")
    run = parts.put("a")
    parts.starter.refuses = True
    parts.scheduler.start_what_can()
    for _ in range(5):
        parts.scheduler.look()
    assert parts.state(run) == ("failed", "its process did not start (3 attempts)")
    assert RunDirectory(parts.runs / str(run)).claim() is None


def test_a_row_that_cannot_be_read_fails_and_keeps_nobody_from_working(parts: Parts) -> None:
    parts.hosts(None, "h1")
    parts.hosts("b", "h2")
    begun, waits = parts.put("a"), parts.put("b", limit="b")
    parts.scheduler.start_what_can()
    waits = parts.put("c", limit="b", tags=["x"])
    good = parts.put("d", limit="b", tags=["y"])
    with sqlite3.connect(parts.runs.parent / "queue.sqlite") as db:
        for run in (begun, waits):
            db.execute("UPDATE runs SET job = ? WHERE id = ?", (b'{"rule": "of before"}', run))
    again = Parts(parts.runs.parent)
    again.hosts("b", "h2")
    again.scheduler.start_what_can()
    assert again.state(waits) == ("failed", "cannot be read")
    assert again.state(good)[0] == "queued"
    # Its process works all the same.
    claim = RunDirectory(parts.runs / str(begun)).claim()
    assert claim is not None
    again.scheduler.look()
    assert again.state(begun)[0] == "running"
    claim.release()
    again.scheduler.look()
    assert again.state(begun)[0] == "lost"


def test_a_run_that_cannot_be_read_and_has_no_process_gets_none(parts: Parts) -> None:
    parts.hosts(None, "h1")
    run = parts.put("a")
    parts.starter.refuses = True
    parts.scheduler.start_what_can()
    with sqlite3.connect(parts.runs.parent / "queue.sqlite") as db:
        db.execute("UPDATE runs SET job = x'ff'")
    again = Parts(parts.runs.parent)
    again.scheduler.look()
    assert again.state(run) == ("failed", "cannot be read")
    assert again.starter.started == []


def test_a_process_that_is_gone_without_a_result_is_lost(parts: Parts) -> None:
    parts.hosts(None, "h1")
    run = parts.put("a")
    parts.scheduler.start_what_can()
    claim = RunDirectory(parts.runs / str(run)).claim()
    assert claim is not None
    parts.scheduler.look()
    claim.release()
    assert parts.scheduler.look()
    assert parts.state(run) == ("lost", "its process ended without a result")
    assert parts.queue.active() == []


def test_a_run_that_ends_before_it_starts_makes_an_older_one_go(parts: Parts) -> None:
    # Nobody lists the hosts of a playbook that is not there.
    runs = [parts.put(key, limit=key) for key in "ab"]
    parts.scheduler.start_what_can()
    assert [run.id for run in parts.queue.newest(9)] == runs[1:]


def test_the_events_of_the_oldest_runs_go_when_they_are_too_many(tmp_path: Path) -> None:
    parts = Parts(tmp_path, kept_runs=9)
    parts.hosts(None, "h1")
    runs = []
    for key, size in enumerate((1000, 2000, 2000, 9000)):
        run = parts.put(str(key))
        parts.scheduler.start_what_can()
        directory = RunDirectory(parts.runs / str(run))
        claim = directory.claim()
        assert claim is not None
        directory.events.write_bytes(b"x" * size)
        directory.finish(Result(state="succeeded", reason="", ended=float(run)))
        claim.release()
        parts.scheduler.look()
        runs.append(sorted(int(path.name) for path in parts.runs.iterdir()))
    # The newest stays, whatever it has.
    assert runs[2:] == [[2, 3], [4]]
    assert [run.id for run in parts.queue.newest(9)] == [4, 3, 2, 1]


def test_runs_that_are_kept_no_more_leave_no_directory(parts: Parts) -> None:
    parts.hosts(None, "h1")
    for key in "ab":
        run = parts.put(key)
        parts.scheduler.start_what_can()
        directory = RunDirectory(parts.runs / str(run))
        claim = directory.claim()
        assert claim is not None
        directory.finish(Result(state="succeeded", reason="", ended=float(run)))
        claim.release()
        parts.scheduler.look()
    assert [path.name for path in parts.runs.iterdir()] == ["2"]


@pytest.mark.parametrize(
    ("stats", "verdict"),
    [
        ({"dark": {"h1": 1}}, ("unreachable", "unreachable: h1")),
        ({"dark": {"h1": 1}, "failures": {"h2": 1}}, ("failed", "failed: h2; unreachable: h1")),
        ({}, ("failed", "as the program says")),
    ],
)
def test_unreachable_is_not_failed(stats: dict[str, object], verdict: tuple[str, str]) -> None:
    events = _Events(io.BytesIO(), 1000)
    assert events.take({"event": "playbook_on_stats", "event_data": stats}) is False
    assert events.verdict("as the program says") == verdict


def test_a_state_directory_that_others_can_read_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = tmp_path / "state"
    config = HookConfig(
        http=HttpConfig(host="127.0.0.1", port=1), rules="/r", ansible=ANSIBLE, state=str(state)
    )
    umask = os.umask(0o022)
    try:
        open_queue(config).close()
        assert os.umask(0o022) == 0o077
        state.chmod(0o750)
        with pytest.raises(SystemExit, match="2"):
            open_queue(config)
    finally:
        os.umask(umask)
    said = capsys.readouterr().err
    assert "has mode 0750" in said
    assert "StateDirectoryMode=0700" in said


def test_a_run_sees_little_of_the_environment(tmp_path: Path) -> None:
    order = Order(run=1, job=job(), ansible=ANSIBLE, grace_seconds=1.0, event_bytes=1)
    seen = environment(order, tmp_path)
    assert seen["PATH"].startswith("/opt/ansible/bin:")
    assert seen["ANSIBLE_HOST_KEY_CHECKING"] == "True"
    assert seen["ANSIBLE_SSH_EXECUTABLE"] == str(tmp_path / "ssh")
    assert not set(seen) & set(os.environ) - {"PATH", "HOME", "LANG"}


def test_a_run_gets_the_credentials_of_its_unit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = Order(run=1, job=job(), ansible=ANSIBLE, grace_seconds=1.0, event_bytes=1)
    assert "ANSIBLE_VAULT_IDENTITY_LIST" not in environment(order, tmp_path)
    given = tmp_path / "credentials"
    given.mkdir()
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(given))
    write_wrappers(order, tmp_path)
    assert "IdentityFile" not in (tmp_path / "ssh").read_text()
    for name in ("inventory_password", "ssh_key"):
        (given / name).write_text("secret\n")
    seen = environment(order, tmp_path)
    assert seen["ANSIBLE_VAULT_IDENTITY_LIST"] == f"hook@{given}/inventory_password"
    # What is run next in the same process gets them, too.
    assert seen["CREDENTIALS_DIRECTORY"] == str(given)
    write_wrappers(order, tmp_path)
    assert f" -o IdentityFile={given}/ssh_key " in (tmp_path / "ssh").read_text()


def test_the_connections_are_read_after_the_inventory_of_the_checkout() -> None:
    assert ANSIBLE.inventories() == ["/c/i"]
    both = msgspec.structs.replace(ANSIBLE, connections="/etc/connections.yml")
    assert both.inventories() == ["/c/i", "/etc/connections.yml"]


_LEAVES_ORPHANS = """
import os, subprocess, sys, time
from prime_spark.hook.processes import adopt_orphans, descendants, end_descendants
adopt_orphans()
stubborn = "trap '' TERM; echo ready; exec >&-; sleep 62; :"
script = f'setsid --fork sleep 61 >&-; setsid --fork sh -c "{stubborn}"'
# Ends when the last one has closed its output.
subprocess.run(["env", "-i", "sh", "-c", script], stdout=subprocess.PIPE, check=True)
assert len(descendants()) >= 2, descendants()
print(end_descendants(0.1), descendants())
"""


def test_orphans_that_left_session_and_environment_are_found_and_ended() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _LEAVES_ORPHANS],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        timeout=60,
        check=False,
    )
    assert done.stdout == "[] []\n", done.stderr

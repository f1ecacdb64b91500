"""The hook end to end: deliveries by HTTP, runs of the real ansible-playbook, kill -9, cancels."""

from __future__ import annotations

import http.client
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property, partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from hook_deliveries import SECRETS, body_of, encoded, signed
from prime_spark.hook.directory import Order, Result, RunDirectory
from prime_spark.hook.drift import Drift
from prime_spark.hook.processes import end, marked
from prime_spark.hook.queue import Queue, Run
from prime_spark.hook.rules import Job
from prime_spark.hook.settings import AnsibleConfig
from prime_spark.hook.starter import StartError, UnitStarter, run_one
from support import Command, Daemon, eventually, free_port, inherited, running

FULL = os.environ.get("PRIME_SPARK_FULL") == "1"
KILLS = 200 if FULL else 6
RUNS_PER_KILL = 2 if FULL else 1
CANCELS = 99 if FULL else 3
HOSTS = ("h1", "h2", "h3")
# A start of Ansible takes a second, and ten where others work on the same two cores.
PATIENCE = 150.0

# Each line of the journal is appended by one write.
PLAYBOOKS = {
    "note.yml": """
- hosts: "!away:all"
  gather_facts: false
  tasks:
    - ansible.builtin.raw: >-
        echo "begin {{ mark }} {{ inventory_hostname }} $(date +%s.%N)" >> {{ journal }};
        sleep {{ seconds | default(0.1) }};
        echo "end {{ mark }} {{ inventory_hostname }} $(date +%s.%N)" >> {{ journal }}
""",
    # Whoever leaves the session of its worker is found all the same.
    "hang.yml": """
- hosts: "!away:all"
  gather_facts: false
  tasks:
    - ansible.builtin.raw: setsid --fork sleep 3001; (trap '' TERM; sleep 3002) & sleep 3003
""",
    # What playbooks/drift.yml does, as far as the hook sees it.
    "drift.yml": """
- hosts: h1,away
  gather_facts: false
  tasks:
    - ansible.builtin.raw: "true"
- hosts: h1
  gather_facts: false
  tasks:
    - ansible.builtin.copy:
        content: >-
          {"hosts": {"h1": {"state": "drifted", "roles": {"api": {"state": "drifted",
          "why": ["x"]}}}, "away": {"state": "unreachable", "roles": {}}}, "summary": {}}
        dest: "{{ drift_file }}"
        mode: "0600"
""",
    "mend.yml": """
- hosts: all
  gather_facts: false
  tasks:
    - ansible.builtin.lineinfile:
        {path: "{{ file }}.{{ inventory_hostname }}", line: mended, create: true, mode: "0600"}
    - ansible.builtin.copy:
        {content: "CANARY-{{ 40 + 2 }}", dest: "{{ file }}.secret", mode: "0600"}
      no_log: true
""",
    "fail.yml": """
- hosts: all
  gather_facts: false
  tasks:
    - ansible.builtin.raw: "echo CANARY-$((40 + 2)); exit 3"
      no_log: true
""",
}
INVENTORY = """
h1 ansible_connection=local
h2 ansible_connection=local
h3 ansible_connection=local
away ansible_host=127.0.0.1 ansible_port=9
"""


def document(journal: Path) -> dict[str, Any]:
    limit = {"field": "data.limit", "enum": [*HOSTS, "all", "away", "h2,away", "nobody"]}
    mark = {"field": "data.mark", "pattern": "[a-z0-9-]+"}
    seconds = {"field": "data.seconds", "integer": {"min": 0, "max": 5}}
    common = {"limit": limit, "variables": {"journal": str(journal)}}

    def by_type(name: str, run: dict[str, Any]) -> dict[str, Any]:
        match = {"body": {"type": {"equals": name}}}
        return {"name": name, "source": "any", "match": match, "run": common | run}

    note = {"playbook": "note.yml", "from_body": {"mark": mark, "seconds": seconds}}
    alert = {"playbook": "note.yml", "limit": {"field": "labels.host", "enum": [*HOSTS]}}
    return {
        "sources": [
            {"name": "any", "kind": "standard_webhooks", "secrets": ["standard_webhooks"]},
            {"name": "alerts", "kind": "alertmanager", "secrets": ["alertmanager"]},
        ],
        "playbooks": [*PLAYBOOKS],
        "schedules": [
            {
                "name": "drift",
                "every_seconds": 86400,
                "run": {"playbook": "drift.yml", "report": "drift"},
            }
        ],
        "rules": [
            by_type("note", note),
            by_type("urgent", note | {"priority": "high"}),
            by_type("hang", {"playbook": "hang.yml"}),
            by_type("late", {"playbook": "hang.yml", "timeout_seconds": 3}),
            by_type("fail", {"playbook": "fail.yml"}),
            by_type(
                "plan",
                {
                    "playbook": "mend.yml",
                    "approval": "required",
                    "variables": {"file": str(journal)},
                },
            ),
            {
                "name": "mend",
                "source": "alerts",
                "run": alert | {"variables": {"journal": str(journal), "mark": "mend"}},
                "remediation": {"cooldown_seconds": 600},
            },
        ],
    }


class HookCommand(Command):
    def arguments(self) -> list[str]:
        return [sys.executable, "-m", "prime_spark.hook", *super().arguments()[1:]]

    def call(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run one of the commands beside the service."""
        program, *config = self.arguments()[2:]
        command = [sys.executable, "-m", program, *arguments, *config]
        return subprocess.run(
            command,
            env=self.environment(),
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
        )


class Hook:
    """A running hook, its queue, and what its runs have noted."""

    def __init__(self, folder: Path, *, polls: bool = False) -> None:
        self.folder = folder
        self.journal = folder / "journal"
        checkout = folder / "checkout"
        checkout.mkdir()
        for name, text in PLAYBOOKS.items():
            (checkout / name).write_text(text)
        (checkout / "inventory").write_text(INVENTORY)
        self.checkout = checkout
        rules = document(self.journal)
        config: dict[str, Any] = {
            "http": {"host": "127.0.0.1", "port": free_port()},
            "rules": str(folder / "rules.yml"),
            "state": str(folder / "state"),
            "limits": {"grace_seconds": 2, "parallel_runs": 3, "queued_runs": 50},
            "ansible": {
                "checkout": str(checkout),
                "inventory": "inventory",
                "programs": str(Path(sys.executable).parent),
                "environment": {
                    "ANSIBLE_PYTHON_INTERPRETER": sys.executable,
                    "ANSIBLE_TIMEOUT": "5",
                },
            },
        }
        if polls:
            self.git("init", "--quiet", "--initial-branch=main", ".")
            self.commit("first")
            rules["sources"].append({"name": "fleet", "kind": "git"})
            run: dict[str, Any] = {"playbook": "note.yml", "limit": "h1", "commit": "after"}
            run["variables"] = {"journal": str(self.journal)}
            rules["rules"].append({"name": "push", "source": "fleet", "run": run})
            repository = {"url": f"file://{checkout}", "refs": ["refs/heads/main"]}
            config["repository"] = repository | {"poll_seconds": 0.5}
        (folder / "rules.yml").write_text(json.dumps(rules))
        self.command = HookCommand("hook", folder, config, SECRETS)
        self.daemon = Daemon(self.command)
        self.numbers = count()

    def git(self, *arguments: str) -> None:
        who = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
        subprocess.run(["git", *who, *arguments], cwd=self.checkout, check=True)

    def commit(self, mark: str) -> None:
        """Commit playbooks that note `mark` where a delivery gives none."""
        text = PLAYBOOKS["note.yml"].replace("{{ mark }}", f"{{{{ mark | default('{mark}') }}}}")
        (self.checkout / "note.yml").write_text(text)
        self.git("add", ".")
        self.git("commit", "--quiet", "--message", mark)

    def start(self) -> None:
        self.daemon.start()
        eventually(self.daemon.healthy, PATIENCE, "healthy")

    @cached_property
    def queue(self) -> Queue:
        return Queue(self.folder / "state" / "queue.sqlite")

    def send(self, kind: str = "note", *, limit: str = "h1", **data: Any) -> tuple[int, Any]:
        body = {"type": kind, "data": {"limit": limit, "mark": "x", "seconds": 0} | data}
        content = encoded("standard_webhooks", body)
        identity = f"msg_{os.getpid()}_{next(self.numbers)}"
        return self.post("any", *signed("standard_webhooks", content, identity=identity))

    def post(self, source: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.daemon.port, timeout=30)
        try:
            connection.request("POST", f"/hooks/{source}", body, headers)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    def run(self, *args: Any, **data: Any) -> int:
        """Send a delivery that is taken; return the run."""
        status, answer = self.send(*args, **data)
        assert status == 202, answer
        run: int = answer["run"]
        return run

    def get(self, run: int) -> Run:
        found = self.queue.get(run)
        assert found is not None
        return found

    def ended(self, run: int) -> Run:
        return eventually(
            lambda: self.get(run) if self.get(run).ended else None, PATIENCE, f"run {run}"
        )

    def directory(self, run: int) -> RunDirectory:
        return RunDirectory(self.folder / "state" / "runs" / str(run))

    def processes(self, run: int) -> list[int]:
        return marked(self.directory(run).path)

    def lines(self) -> list[list[str]]:
        if not self.journal.exists():
            return []
        return [line.split() for line in self.journal.read_text().splitlines()]

    def hanging(self, run: int) -> bool:
        """Whether the run is where it stays."""
        sleeping = 0
        for pid in self.processes(run):
            try:
                command = Path(f"/proc/{pid}/cmdline").read_bytes()
            except OSError:
                continue
            sleeping += command.startswith(b"sleep\0" + b"300")
        return sleeping == 3

    def tidy(self) -> None:
        """End what a failed test has left."""
        for path in (self.folder / "state" / "runs").glob("*"):
            end(lambda path=path: marked(path))  # type: ignore[misc]


@contextmanager
def serving(hook: Hook) -> Iterator[Hook]:
    try:
        with running(hook.command) as hook.daemon:
            # Once it has asked the repository, too, where there is one.
            eventually(hook.daemon.healthy, PATIENCE, "healthy")
            yield hook
    finally:
        hook.tidy()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hook]:
    with serving(Hook(tmp_path_factory.mktemp("hook"))) as hook:
        yield hook


@pytest.fixture
def hook(shared: Hook) -> Hook:
    """The hook of all tests that do not kill it, with an empty journal."""
    shared.journal.unlink(missing_ok=True)
    return shared


def test_a_delivery_becomes_a_run_and_the_run_is_told_as_it_was(hook: Hook) -> None:
    names = ("prime_spark_hook_runs_ended_total", "prime_spark_hook_deliveries_total")
    before = [hook.daemon.metric(name) for name in names]
    said = hook.command.call("drift", "--start", "--json")
    looks = json.loads(said.stdout)["run"]
    noted = hook.run(limit="h1", mark="one")
    failing = hook.run("fail", limit="h2,away")
    unmatched = hook.run("note", limit="nobody")
    run = hook.ended(noted)
    assert (run.state, run.reason, run.hosts) == ("succeeded", "", ["h1"])
    assert [line[:3] for line in hook.lines()] == [["begin", "one", "h1"], ["end", "one", "h1"]]
    directory = hook.directory(noted)
    assert directory.path.stat().st_mode & 0o777 == 0o700
    assert not directory.private.exists()
    events = [json.loads(line) for line in directory.events.read_text().splitlines()]
    assert [event["event"] for event in events][-1] == "playbook_on_stats"
    assert hook.ended(failing).reason == "failed: h2; unreachable: away"
    assert hook.get(failing).state == "failed"
    assert "CANARY-42" not in hook.directory(failing).events.read_text()
    assert hook.ended(unmatched).state == "failed"
    assert "cannot list the hosts" in hook.get(unmatched).reason
    # A remediation that has been on a host leaves it alone for a while.
    runs = []
    for moment in ("2026-11-30T10:00:00Z", "2026-11-30T10:00:01Z"):
        notification = body_of("alertmanager")
        notification["alerts"][0] |= {"startsAt": moment, "labels": {"host": "h3"}}
        content = encoded("alertmanager", notification)
        status, answer = hook.post("alerts", *signed("alertmanager", content))
        assert status == 202, answer
        runs.append(hook.ended(answer["run"]))
    assert [run.state for run in runs] == ["succeeded", "skipped"]
    assert runs[1].reason == f"run {runs[0].id} was on h3 within 600 s"
    assert hook.ended(looks).state == "succeeded", hook.get(looks).reason
    states = {each.host: each.state for each in Drift(hook.queue).latest()}
    assert states == {"away": "unreachable", "h1": "drifted"}
    after = [hook.daemon.metric(name) for name in names]
    assert [new - old for new, old in zip(after, before, strict=True)] == [6, 5]


def test_many_at_once_are_answered_and_become_one_run_of_each_kind(hook: Hook) -> None:
    blocker = hook.run("hang", limit="all")
    eventually(lambda: hook.get(blocker).state == "running", PATIENCE, "running")
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda n: hook.send(mark=f"m{n % 10}"), range(200)))
    assert Counter(status for status, _ in answers) == {202: 200}
    for number in range(10):
        assert len({answer["run"] for _, answer in answers[number::10]}) == 1
    waiting = hook.queue.pending()
    assert sorted({answer["run"] for _, answer in answers}) == [run.id for run in waiting]
    assert [len(hook.queue.deliveries(run.id)) for run in waiting] == [20] * 10
    assert hook.lines() == []
    # What is urgent comes first.
    urgent = hook.run("urgent", mark="urgent")
    for run in waiting[2:]:
        hook.queue.cancel(run.id)
    first = waiting[1].id
    assert [hook.command.call("runs", "cancel", str(first)).returncode for _ in range(2)] == [0, 1]
    shown = hook.command.call("runs", "list", "--json", "--number", "1").stdout
    assert [run["rule"] for run in json.loads(shown)] == ["urgent"]
    hook.queue.cancel(blocker)
    assert hook.ended(blocker).state == "cancelled"
    assert hook.ended(waiting[0].id).state == hook.ended(urgent).state == "succeeded"
    # Whichever came first.
    assert waiting[0].job is not None
    mark = waiting[0].job.variables["mark"]
    assert [line[1] for line in hook.lines()] == ["urgent", "urgent", mark, mark]


def test_a_cancelled_run_leaves_no_process(hook: Hook) -> None:
    for _ in range(CANCELS // len(HOSTS)):
        runs = [hook.run("hang", limit=host) for host in HOSTS]
        for run in runs:
            eventually(lambda run=run: hook.hanging(run), PATIENCE, "hanging")  # type: ignore[misc]
        for run in runs:
            assert hook.queue.cancel(run)
        for run in runs:
            assert hook.ended(run).state == "cancelled"
            assert hook.processes(run) == []


def test_a_plan_is_applied_once_it_is_approved_and_only_as_it_was(hook: Hook) -> None:
    files = {host: Path(f"{hook.journal}.{host}") for host in ("h1", "h2")}
    runs = {host: hook.run("plan", limit=host) for host in files}
    for run in runs.values():
        eventually(lambda run=run: hook.get(run).state == "waiting_approval", PATIENCE, "planned")  # type: ignore[misc]
    assert not any(file.exists() for file in files.values())
    first, second = (hook.get(run) for run in runs.values())
    shown = hook.command.call("runs", "show", str(first.id)).stdout
    assert "+mended" in shown
    assert "h1: 1 tasks with no_log" in shown
    assert "CANARY" not in shown
    assert first.plan_hash is not None
    assert second.plan_hash is not None
    # What is there now is not what was seen.
    files["h2"].write_text("of somebody else\n")
    approved = hook.command.call(
        "runs", "approve", str(first.id), "--hash", first.plan_hash, "--json"
    )
    refused = hook.queue.approve(second.id, "bob", second.plan_hash)
    applied = hook.ended(json.loads(approved.stdout)["run"])
    assert (applied.state, applied.results) == ("succeeded", {"h1": "changed"})
    assert (applied.applies, hook.get(first.id).applied) == (first.id, applied.id)
    assert files["h1"].read_text() == "mended\n"
    assert hook.ended(refused).state == "plan_changed"
    plan = hook.directory(refused).plan()
    assert plan is not None
    assert plan.hash != second.plan_hash
    assert files["h2"].read_text() == "of somebody else\n"


def test_time_is_up_and_a_process_that_dies_without_a_result(hook: Hook) -> None:
    late, dead = hook.run("late", limit="h1"), hook.run("hang", limit="h2")
    eventually(lambda: hook.hanging(dead), PATIENCE, "hanging")
    waits = hook.run(limit="h2", mark="after")
    process = hook.directory(dead).process()
    assert process is not None
    os.kill(process, signal.SIGKILL)
    assert hook.ended(dead).state == "lost"
    assert hook.processes(dead) == []
    assert hook.ended(waits).state == "succeeded"
    assert (hook.ended(late).state, hook.get(late).reason) == ("timed_out", "after 3 s")
    assert hook.processes(late) == []


@pytest.mark.timeout(900 if not FULL else 7200)
def test_kill_9_at_any_moment_loses_no_run_and_makes_none_twice(tmp_path: Path) -> None:
    hook = Hook(tmp_path)
    seed = random.randrange(10**6)
    moments = random.Random(seed)
    print("seed", seed)  # noqa: T201
    runs: dict[int, str] = {}
    try:
        for number in range(KILLS):
            hook.start()
            for _ in range(RUNS_PER_KILL):
                mark = f"k{len(runs)}"
                runs[hook.run(limit=moments.choice(HOSTS), mark=mark)] = mark
            if number % 2:  # one that is under way
                eventually(hook.queue.active, PATIENCE, "active")
            time.sleep(moments.uniform(0, 1.5))
            hook.daemon.kill()
        hook.start()
        states = Counter(hook.ended(run).state for run in runs)
        assert states == {"succeeded": len(runs)}
        begun = Counter(line[1] for line in hook.lines() if line[0] == "begin")
        assert begun == dict.fromkeys(runs.values(), 1)
        assert overlaps(hook.lines()) == []
        assert [hook.processes(run) for run in runs] == [[]] * len(runs)
        assert hook.queue.active() == []
        assert hook.daemon.terminate() == 0
    finally:
        hook.daemon.end()
        hook.tidy()


def overlaps(lines: list[list[str]]) -> list[list[str]]:
    """Return what begins on a host where another run has not ended."""
    found, busy = [], {}
    for line in sorted(lines, key=lambda line: float(line[3])):
        what, mark, host, _ = line
        if what == "end":
            busy.pop(host, None)
        elif host in busy:
            found.append(line)
        else:
            busy[host] = mark
    return found


def order(hook: Hook, mark: str, limit: str = "h1") -> Order:
    job = Job(
        rule="note",
        playbook="note.yml",
        tags=[],
        limit=limit,
        check=False,
        priority="normal",
        timeout_seconds=60.0,
        variables={"mark": mark, "journal": str(hook.journal)},
    )
    ansible = AnsibleConfig(**hook.command.config["ansible"])
    return Order(run=1, job=job, ansible=ansible, grace_seconds=2.0, event_bytes=1000)


def test_a_push_is_polled_and_played_at_its_commit(tmp_path: Path) -> None:
    with serving(Hook(tmp_path, polls=True)) as hook:
        hook.commit("second")
        (hook.checkout / "note.yml").write_text("of no commit")
        eventually(lambda: hook.queue.get(1), PATIENCE, "polled")
        assert hook.ended(1).state == "succeeded"
        assert [line[1] for line in hook.lines()] == ["second", "second"]


def test_two_processes_for_one_run_play_it_once(tmp_path: Path) -> None:
    hook = Hook(tmp_path)
    directory = RunDirectory(tmp_path / "run")
    assert not directory.path.exists()
    directory.prepare(order(hook, "once"))
    assert directory.status() == "unclaimed"
    processes = [subprocess.Popen(run_one(directory), env=inherited()) for _ in range(2)]
    assert [process.wait(PATIENCE) for process in processes] == [0, 0]
    assert [line[0] for line in hook.lines()] == ["begin", "end"]
    result = directory.status()
    assert not isinstance(result, str)
    assert result.state == "succeeded"
    # Events are kept up to a size.
    kept = directory.events.read_text().splitlines()
    assert json.loads(kept[-1]) == {"event": "cut_off"}
    assert sum(map(len, kept[:-1])) < 1000


def test_each_connection_to_the_socket_is_one_run(tmp_path: Path) -> None:
    hook = Hook(tmp_path)
    path = tmp_path / "start.sock"
    # What systemd does with Accept=yes, without the unit around it.
    command = ["systemd-socket-activate", "--accept", "--inetd", f"--listen={path}"]
    command += [f"--setenv={name}" for name in inherited()]
    command += [sys.executable, "-m", "prime_spark.hook", "run-one"]
    starter = UnitStarter(str(path))
    with subprocess.Popen(command, env=inherited()) as listener:
        try:
            eventually(path.exists, PATIENCE, "socket")
            for number, limit in enumerate(("h1", "h2")):
                directory = RunDirectory(tmp_path / f"run{number}")
                directory.prepare(order(hook, f"r{number}", limit=limit))
                starter.start(directory)
                result = eventually(partial(_result, directory), PATIENCE, "result")
                assert result.state == "succeeded"
        finally:
            listener.terminate()
    assert [line[1] for line in hook.lines()] == ["r0", "r0", "r1", "r1"]
    # Nobody listens any more.
    with pytest.raises(StartError, match=r"start\.sock"):
        starter.start(directory)


def _result(directory: RunDirectory) -> Result | None:
    status = directory.status()
    return status if isinstance(status, Result) else None


def test_the_checkout_cannot_undo_the_host_keys(tmp_path: Path) -> None:
    hook = Hook(tmp_path)
    (hook.checkout / "ansible.cfg").write_text(
        "[ssh_connection]\nssh_args = -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null\n"
        "ssh_executable = /bin/true\nretries = 0\n"
    )
    (hook.checkout / "inventory").write_text("h1 ansible_host=127.0.0.1\n")
    programs = tmp_path / "programs"
    programs.mkdir()
    ansible = "ansible-playbook"
    (programs / ansible).symlink_to(Path(sys.executable).parent / ansible)
    asked = tmp_path / "asked"
    # Shows what it is given, and reaches nobody.
    (programs / "ssh").write_text(f"#!/bin/sh\nprintf '%s\\n' \"$*\" >> {asked}\nexit 255\n")
    (programs / "ssh").chmod(0o700)
    hook.command.config["ansible"]["programs"] = str(programs)
    directory = RunDirectory(tmp_path / "run")
    directory.prepare(order(hook, "keys"))
    assert subprocess.run(run_one(directory), env=inherited(), check=False).returncode == 0
    result = directory.status()
    assert not isinstance(result, str)
    assert result.state == "unreachable"
    given = asked.read_text().splitlines()
    assert [line for line in given if "127.0.0.1" in line]
    keys = "-o UserKnownHostsFile=/etc/ssh/ssh_known_hosts -o StrictHostKeyChecking=yes "
    assert [line for line in given if not line.startswith(keys)] == []

"""The repository of the playbooks: worktrees at exactly a commit, and what polling makes of it."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from pathlib import Path

import pytest
from test_hook_parts import Parts

from prime_spark.config import ConfigError, decode_config
from prime_spark.hook.directory import RunDirectory
from prime_spark.hook.poll import Poller
from prime_spark.hook.queue import Queue
from prime_spark.hook.repository import GitError, Repository, revision_of
from prime_spark.hook.rules import Rules, RulesError, ValueRefusedError, read_rules
from prime_spark.hook.service import check_commits
from prime_spark.hook.settings import AnsibleConfig, HookConfig, HttpConfig, RepositoryConfig
from prime_spark.runtime.health import Health
from prime_spark.runtime.notify import Notifier
from prime_spark.runtime.service import Service


class Origin:
    """A bare repository, and somebody who pushes to it."""

    def __init__(self, folder: Path) -> None:
        self.work = folder / "work"
        bare = folder / "origin.git"
        self.url = f"file://{bare}"
        subprocess.run(["git", "init", "--quiet", "--bare", bare], check=True)
        subprocess.run(["git", "init", "--quiet", "--initial-branch=main", self.work], check=True)

    def git(self, *arguments: str) -> str:
        who = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
        done = subprocess.run(
            ["git", *who, *arguments], cwd=self.work, check=True, stdout=subprocess.PIPE, text=True
        )
        return done.stdout.strip()

    def push(self, text: str, branch: str = "main") -> str:
        """Push a commit whose site.yml is `text`; return it."""
        (self.work / "site.yml").write_text(text)
        self.git("add", ".")
        self.git("commit", "--quiet", "--message", text)
        self.git("push", "--quiet", "--force", self.url, f"HEAD:refs/heads/{branch}")
        return self.git("rev-parse", "HEAD")


@pytest.fixture
def origin(tmp_path: Path) -> Origin:
    return Origin(tmp_path)


def config(origin: Origin, *refs: str) -> RepositoryConfig:
    return RepositoryConfig(url=origin.url, refs=list(refs or ["refs/heads/main"]))


@pytest.fixture
def repository(origin: Origin, tmp_path: Path) -> Repository:
    (tmp_path / "state").mkdir()
    return Repository(config(origin), tmp_path / "state")


def test_a_worktree_is_at_exactly_the_commit(origin: Origin, repository: Repository) -> None:
    first, second = origin.push("one"), origin.push("two")
    assert repository.heads() == {"refs/heads/main": second}
    old, new = repository.checkout(first, "1"), repository.checkout(second, "2")
    assert [(path / "site.yml").read_text() for path in (old, new)] == ["one", "two"]
    assert old == repository.path("1")
    third = origin.push("three")
    assert (repository.checkout(third, "3") / "site.yml").read_text() == "three"
    repository.keep_only(["1"])
    assert [path.name for path in new.parent.iterdir()] == ["1"]
    # What a run has left there, or one that was broken off, is not for the next.
    (old / "site.yml").write_text("changed")
    (old / "ansible.cfg").touch()
    again = repository.checkout(first, "1")
    assert sorted(path.name for path in again.iterdir()) == [".git", "site.yml"]
    assert (again / "site.yml").read_text() == "one"


def test_only_commits_of_allowed_refs_are_played(origin: Origin, repository: Repository) -> None:
    origin.push("one")
    elsewhere = origin.push("evil", "feature/main")
    origin.push("odd", "x/refs/heads/main")
    for commit in (elsewhere, "0" * 40):
        with pytest.raises(GitError, match="no allowed ref contains"):
            repository.checkout(commit, "1")
    for name in ("main", "refs/heads/main", "--help", "", elsewhere[:12]):
        with pytest.raises(GitError, match="no commit"):
            repository.checkout(name, "1")
    assert list(repository.heads()) == ["refs/heads/main"]


def test_what_was_taken_back_is_played_no_more(origin: Origin, repository: Repository) -> None:
    first, second = origin.push("one"), origin.push("two")
    repository.checkout(second, "1")
    origin.git("reset", "--quiet", "--hard", first)
    origin.push("another two")
    with pytest.raises(GitError, match="no allowed ref contains"):
        repository.checkout(second, "1")
    origin.git("push", "--quiet", "--delete", origin.url, "main")
    assert repository.heads() == {}
    repository.keep_only([])
    with pytest.raises(GitError, match="no allowed ref contains"):
        repository.checkout(first, "1")


def test_a_run_for_a_ref_is_played_at_the_commit_that_it_has_when_it_starts(
    origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prime_spark.hook.scheduler.hosts_of", lambda *_: frozenset(["h1"]))
    origin.push("one")
    (tmp_path / "state").mkdir()
    parts = Parts(tmp_path / "state", kept_runs=9)
    scheduler = parts.scheduler
    scheduler._repository = Repository(config(origin), tmp_path / "state")
    run, gone = parts.put("a", ref="refs/heads/main"), parts.put("b", ref="refs/heads/gone")
    second = origin.push("two")
    scheduler.start_what_can()
    assert parts.state(gone) == ("failed", "there is no refs/heads/gone")
    started = parts.queue.get(run)
    assert started is not None
    assert started.job is not None
    assert started.job.commit == second
    order = RunDirectory(parts.runs / str(run)).order()
    assert (Path(order.ansible.checkout) / "site.yml").read_text() == "two"
    # A plan is applied at the commit that it is of.
    planned = parts.put("c", ref="refs/heads/main", approval_seconds=60.0)
    parts.queue.end(run, "succeeded")
    scheduler.start_what_can()
    parts.queue.wait_approval(planned, "hash", 1)
    applies = parts.queue.get(parts.queue.approve(planned, "alice", "hash"))
    assert applies is not None
    assert applies.job is not None
    assert applies.job.commit == second


def test_what_names_a_checkout_changes_with_every_file_of_it(origin: Origin) -> None:
    commit = origin.push("one")
    checkout = str(origin.work)
    assert revision_of(checkout) == commit
    seen = {commit}
    for name, text in (("site.yml", "two"), ("site.yml", "three"), ("new.yml", "one")):
        (origin.work / name).write_text(text)
        seen.add(revision_of(checkout))
    assert len(seen) == 4
    assert revision_of("/") == ""


def test_an_origin_that_is_away_is_an_error_of_one_line(tmp_path: Path) -> None:
    away = RepositoryConfig(url=f"file://{tmp_path}/nowhere", refs=["refs/heads/main"])
    with pytest.raises(GitError, match="git ls-remote ended with 128"):
        Repository(away, tmp_path).heads()


def test_no_error_of_git_tells_a_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = "https://CANARY-1@git.example.org/fleet"
    for name in (url, url.replace("CANARY", "user:CANARY"), url.upper()):
        with pytest.raises(ConfigError, match="credential helper"):
            decode_config(json.dumps({"url": name, "refs": ["refs/heads/main"]}), RepositoryConfig)
    program = tmp_path / "git"
    program.touch(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    # A helper or url.*.insteadOf may have put it there.
    address = "ssh://user:CANARY@x@git.example.org/fleet"
    away = RepositoryConfig(url=address, refs=["refs/heads/main"], timeout_seconds=0.2)
    said = []
    for script in (f"echo 'cannot reach {address} {'x' * 265}' >&2; exit 1", "exec sleep 60"):
        program.write_text(f"#!/bin/sh\n{script}\n")
        with pytest.raises(GitError) as error:
            Repository(away, tmp_path).heads()
        said.append(str(error.value))
    assert "CANARY" not in str(said)
    assert said[1] == "git ls-remote: no answer within 0.2 s"


def test_each_command_of_git_is_a_heartbeat(origin: Origin, tmp_path: Path) -> None:
    beats: list[int] = []
    Repository(config(origin), tmp_path, lambda: beats.append(1)).heads()
    assert beats == [1]


# --- polling ----------------------------------------------------------------------------------


def rules() -> Rules:
    document = {
        "sources": [{"name": "fleet", "kind": "git"}],
        "playbooks": ["site.yml"],
        "rules": [
            {
                "name": "deploy",
                "source": "fleet",
                "match": {"body": {"ref": {"equals": "refs/heads/main"}}},
                "run": {"playbook": "site.yml", "commit": "after"},
            }
        ],
    }
    return read_rules(json.dumps(document), "rules.yml")


def poller(origin: Origin, queue: Queue, state: Path, seconds: float = 1) -> tuple[Poller, Health]:
    health = Health("hook")
    repository = Repository(config(origin, "refs/heads/main", "refs/heads/other"), state)
    made = Poller(repository, rules(), queue, seconds=seconds, health=health, wake=lambda: None)
    return made, health


def test_a_change_of_a_ref_is_a_run_at_its_commit(origin: Origin, tmp_path: Path) -> None:
    first = origin.push("one")
    queue = Queue(tmp_path / "queue.sqlite", max_queued=2)
    polls, health = poller(origin, queue, tmp_path)
    assert polls.poll() == 0, "what is there at the first look starts nothing"
    second = origin.push("two")
    assert [polls.poll(), polls.poll()] == [1, 0]
    # After a restart it knows where it was.
    polls, health = poller(origin, queue, tmp_path)
    assert polls.poll() == 0
    origin.push("other", "other")
    origin.push("another", "other")
    assert polls.poll() == 0, "no rule is for that ref"
    # Back to where it was, which is a change, too; what the queue has no room for comes later.
    origin.git("push", "--quiet", "--force", origin.url, f"{first}:refs/heads/main")
    assert polls.poll() == 1
    third = origin.git("rev-parse", "HEAD")
    origin.git("push", "--quiet", "--force", origin.url, f"{third}:refs/heads/main")
    assert polls.poll() == 0
    assert not health.is_ok("git")
    assert [run.job and run.job.commit for run in queue.pending()] == [second, first]
    queue.end(1, "succeeded")
    assert polls.poll() == 1
    assert health.is_ok("git")
    assert queue.deliveries(3)[0].startswith(f"fleet/refs/heads/main:{third}:")


def test_an_origin_that_is_away_is_told_and_asked_again(origin: Origin, tmp_path: Path) -> None:
    polls, health = poller(origin, Queue(tmp_path / "queue.sqlite"), tmp_path)
    bare = tmp_path / "origin.git"
    bare.rename(tmp_path / "away")
    assert polls.poll() == 0
    assert health.status == "degraded"
    (tmp_path / "away").rename(bare)
    polls.poll()
    assert health.status == "ok"


def test_between_two_looks_the_poller_gives_signs_of_life(origin: Origin, tmp_path: Path) -> None:
    polls, _ = poller(origin, Queue(tmp_path / "queue.sqlite"), tmp_path, seconds=200.0)
    pauses: list[float] = []

    class Watched(Service):
        beats = 0

        def beat(self, loop: str) -> None:
            super().beat(loop)
            self.beats += 1

        async def pause(self, seconds: float) -> bool:
            pauses.append(seconds)
            return len(pauses) == 8

    async def play() -> int:
        service = Watched(Notifier(), stall_seconds=120.0)
        await polls.run(service)
        return service.beats

    assert asyncio.run(play()) == 8 + 2
    assert pauses == [30.0] * 6 + [20.0, 30.0]


def test_a_commit_is_a_hash_and_nothing_else() -> None:
    for value in ("main", "0" * 39, "0" * 41, "G" * 40, f"{'0' * 40}\n", 1, None):
        with pytest.raises(ValueRefusedError):
            rules().job("fleet", {}, {"ref": "refs/heads/main", "after": value})


def test_what_needs_a_repository_says_so(origin: Origin) -> None:
    ansible = AnsibleConfig(checkout="/c", inventory="i", programs="/p")
    hook = HookConfig(http=HttpConfig(host="127.0.0.1", port=1), rules="/r", ansible=ansible)
    with pytest.raises(ConfigError, match="there is no repository"):
        check_commits(hook, rules())
    with pytest.raises(RulesError, match="expected no secrets for kind git"):
        read_rules(
            '{"sources": [{"name": "a", "kind": "git", "secrets": ["s"]}], "playbooks": [], '
            '"rules": []}',
            "rules.yml",
        )

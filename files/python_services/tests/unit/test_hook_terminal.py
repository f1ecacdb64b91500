"""The commands in a terminal: what they do, and that no value from outside does anything."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from msgspec.structs import replace
from test_hook_queue import job

from prime_spark.hook.cli import main
from prime_spark.hook.directory import RunDirectory
from prime_spark.hook.plan import Change, Plan
from prime_spark.hook.queue import Queue
from prime_spark.hook.terminal import harmless

EVIL = "\x1b]0;owned\x07\x1b[2J\x9b31m\r\n\u202emain<b>"
MUCH = "\x1b[31m" * 2_000_000


class Files:
    def __init__(self, folder: Path) -> None:
        self.state = folder / "state"
        self.state.mkdir(mode=0o700)
        self.queue = Queue(self.state / "queue.sqlite")
        source = {"name": "any", "kind": "git"}
        rules = {"sources": [source], "playbooks": ["site.yml"], "rules": []}
        (folder / "rules.yml").write_text(json.dumps(rules))
        config = {
            "http": {"host": "127.0.0.1", "port": 1},
            "rules": str(folder / "rules.yml"),
            "state": str(self.state),
            "ansible": {"checkout": "/c", "inventory": "i", "programs": "/p"},
        }
        self.config = folder / "config.json"
        self.config.write_text(json.dumps(config))

    def plan(self) -> int:
        """Let a run wait whose every text is evil."""
        wanted = replace(job(), approval_seconds=60.0, variables={"branch": EVIL})
        run = self.queue.put(wanted, f"user:{EVIL}").run
        self.queue.start(run, [EVIL + MUCH])
        change = {"host": EVIL, "task": EVIL, "path": "x", "action": "copy", "item": EVIL}
        plan = Plan(
            hash="0123456789",
            revision="",
            total=1,
            hosts={},
            hidden={EVIL: 1},
            changes=[Change(**change, diff=f"+{EVIL}\n+{MUCH[:9999]}", cut=True)],
        )
        directory = RunDirectory(self.state / "runs" / str(run))
        directory.path.mkdir(parents=True)
        directory.write_plan(plan)
        lines = [{"event": "x", "stdout": f"\x1b[0;33mchanged\x1b[0m {EVIL}"}, {"stdout": MUCH}]
        directory.events.write_text("".join(json.dumps(line) + "\n" for line in lines))
        self.queue.wait_approval(run, plan.hash, plan.total)
        return run


@pytest.fixture
def journal(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    lines: list[Any] = []
    monkeypatch.setattr("syslog.syslog", lambda _, line: lines.append(json.loads(line)))
    yield lines
    structlog.reset_defaults()


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, journal: list[Any]) -> Files:
    monkeypatch.setenv("SUDO_USER", "alice")
    return Files(tmp_path)


def call(files: Files, *arguments: str) -> int:
    return main([*arguments, "--config", str(files.config)])


def test_a_text_is_one_line_that_does_nothing_and_is_no_longer_than_it_may_be() -> None:
    assert harmless("Grüße, 你好 {x}") == "Grüße, 你好 {x}"
    shown = harmless(EVIL + "\ud800")
    assert shown == "\\x1b]0;owned\\x07\\x1b[2J\\x9b31m\\r\\n\\u202emain<b>\\ud800"
    assert len(harmless(MUCH)) == 2000
    assert harmless("abcd", 3) == "ab…"


@pytest.mark.parametrize("what", ["list", "show", "follow"])
def test_whatever_names_and_output_hold_the_terminal_only_shows_it(
    what: str, files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    run = files.plan()
    assert call(files, "runs", what, *([] if what == "list" else [str(run)])) == 0
    out = capsys.readouterr().out
    assert all(line.isprintable() for line in out.splitlines())
    assert max(map(len, out.splitlines())) <= 2100
    assert len(out) < 30_000
    assert "waiting_approval" in out
    if what == "follow":
        assert out.startswith("changed \\x1b]0;owned")


def test_decisions_in_a_terminal(
    files: Files, capsys: pytest.CaptureFixture[str], journal: list[Any]
) -> None:
    run = files.plan()
    assert call(files, "runs", "approve", str(run), "--hash", "012345") == 1
    assert "another plan" in capsys.readouterr().err
    assert call(files, "runs", "approve", str(run), "--hash", "01234567", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"run": 2}
    who = {"event": "approve", "audit": "act", "user": "alice", "client": "terminal", "run": run}
    assert journal[1] == who | {"level": "info", "refused": "", "started": 2}
    assert "another plan" in journal[0]["refused"]
    assert call(files, "runs", "reject", str(run)) == 1
    assert "approved by alice" in capsys.readouterr().err
    assert call(files, "runs", "show", "99") == 1
    assert call(files, "runs", "cancel", "2") == 0
    assert call(files, "runs", "cancel", "2") == 1
    assert "run 2 has ended: cancelled" in capsys.readouterr().err
    assert call(files, "runs", "show", "2", "--json") == 0
    assert json.loads(capsys.readouterr().out)["decided_by"] == "alice"
    assert call(files, "reset", "deploy", "h1") == 1
    assert call(files, "breakers") == 0
    assert call(files, "drift", "--start") == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="acts as root and as another user")
def test_what_root_writes_while_the_service_is_down_the_service_can_read(files: Files) -> None:
    run = files.queue.put(job(), "user:x").run
    files.queue.close()
    nobody = 65534
    for path in (files.state, *files.state.iterdir()):
        os.chown(path, nobody, nobody)
    assert call(files, "runs", "cancel", str(run)) == 0
    assert {path.stat().st_uid for path in files.state.iterdir()} == {nobody}


def test_a_queue_that_cannot_be_written_is_one_line(
    files: Files, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = files.queue.put(job(), "user:x").run
    monkeypatch.setattr("prime_spark.hook.database._BUSY_SECONDS", 0.05)
    with files.queue.transaction(), pytest.raises(SystemExit) as ended:
        main(["runs", "cancel", str(run), "--config", str(files.config)])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "database is locked" in said
    assert "Traceback" not in said

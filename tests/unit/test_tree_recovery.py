"""config_tree when things go wrong: a run that fails goes back, one that is killed is made up for.

The module runs in a process of its own, as root, in a directory of the test's own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.prime_spark.fleet.plugins.module_utils.tree import Tree, TreeError
from ansible_collections.prime_spark.fleet.plugins.module_utils.undo import Snapshot, locked

ROOT = Path(__file__).resolve().parents[2]
# The module as Ansible would start it, with its arguments on standard input.
LOADER = """
import sys
sys.path.append("collections")
"""
ARGUMENTS = """
from ansible.module_utils import basic
basic._ANSIBLE_PROFILE = "legacy"
basic._ANSIBLE_ARGS = ('{"ANSIBLE_MODULE_ARGS": %s}' % sys.stdin.read()).encode()
from ansible_collections.prime_spark.fleet.plugins.modules import config_tree
config_tree.main()
"""
RUNNER = LOADER + ARGUMENTS
RECORDS = Path("/var/lib/prime-spark/trees")

needs_root = pytest.mark.skipif(
    os.getuid() != 0, reason="the record of a tree lies in root's directory"
)


class Host:
    """This machine as a host: one tree with one file and one command that applies it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.name = f"test-recovery-{os.getpid()}"
        self.file = directory / "etc/service.conf"
        self.applied = directory / "applied"

    def run(
        self, content: str, *, check: bool = False, script: str | None = None, **more: Any
    ) -> Any:
        """One module run; the command takes the file's content to be what runs."""
        apply = script or f"cp {self.file} {self.applied}"
        arguments = {
            "name": self.name,
            "files": [{"path": str(self.file), "content": content}],
            "directories": [{"path": str(self.file.parent)}],
            "apply": [["sh", "-c", apply]],
            **more,
        }
        done = subprocess.run(
            [sys.executable, "-c", RUNNER],
            cwd=ROOT,
            input=json.dumps({**arguments, "_ansible_check_mode": check}),
            capture_output=True,
            text=True,
            check=False,
        )
        # A module that is killed says nothing.
        return json.loads(done.stdout or '{"failed": true, "msg": "killed"}')


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    made = Host(tmp_path)
    yield made
    for path in RECORDS.glob(f"{made.name}.*"):
        path.unlink()


# Fails, but only for the new content.
PICKY = "grep -q good {file} && cp {file} {applied}"


@needs_root
def test_a_state_that_does_not_come_up_goes_back_and_is_tried_again(host: Host) -> None:
    picky = PICKY.format(file=host.file, applied=host.applied)
    assert host.run("good 1\n", script=picky)["changed"]
    failed = host.run("bad 2\n", script=picky)
    assert failed["failed"]
    assert "Went back to the previous configuration." in failed["msg"]
    assert host.file.read_text() == "good 1\n"
    assert host.applied.read_text() == "good 1\n"
    # Nothing was forgotten: the next run tries once more, and says the same.
    assert host.run("bad 2\n", script=picky)["failed"]
    assert host.run("good 2\n", script=picky)["changed"]
    assert host.applied.read_text() == "good 2\n"
    assert not host.run("good 2\n", script=picky)["changed"]


@needs_root
def test_a_first_state_that_does_not_come_up_stays_for_the_next_run(host: Host) -> None:
    picky = PICKY.format(file=host.file, applied=host.applied)
    failed = host.run("bad\n", script=picky)
    assert failed["failed"] and "Went back" not in failed["msg"]
    assert host.file.read_text() == "bad\n"
    assert host.run("good\n", script=picky)["changed"]


@needs_root
def test_nothing_is_gone_back_to_where_nothing_was_changed(host: Host) -> None:
    host.run("one\n")
    # Another fingerprint with the same files, as after a unit was found to be down.
    failed = host.run("one\n", script="echo the reason >&2; exit 1", fingerprint="other")
    assert "the reason" in failed["msg"] and "Went back" not in failed["msg"]
    assert [path.suffix for path in RECORDS.glob(f"{host.name}.*")] == [".json"]


@needs_root
def test_a_module_killed_between_write_and_restart_is_made_up_for(host: Host) -> None:
    host.run("one\n")
    killed = host.run("two\n", script="kill -9 $PPID; sleep 5")
    assert killed["failed"]
    assert host.file.read_text() == "two\n"
    assert host.applied.read_text() == "one\n"
    assert host.run("two\n", check=True)["changed"]
    assert host.run("two\n")["changed"]
    assert host.applied.read_text() == "two\n"
    assert not host.run("two\n")["changed"]


@needs_root
def test_after_a_kill_the_way_back_leads_to_the_last_state_that_worked(host: Host) -> None:
    picky = PICKY.format(file=host.file, applied=host.applied)
    host.run("good\n", script=picky)
    host.run("bad\n", script="kill -9 $PPID; sleep 5")
    assert host.file.read_text() == "bad\n"
    failed = host.run("bad\n", script=picky)
    assert "Went back" in failed["msg"]
    assert host.file.read_text() == "good\n"
    # The note about it held the old content; it goes with its purpose.
    assert [path.suffix for path in RECORDS.glob(f"{host.name}.*")] == [".json"]


@needs_root
def test_what_left_takes_its_files_and_directories_with_it(host: Host, tmp_path: Path) -> None:
    host.run("one\n")
    more = tmp_path / "more/below"
    more.mkdir(parents=True)
    leave = {"state": "absent", "absent": [str(more.parent)], "script": "true"}
    predicted = host.run("", check=True, **leave)
    assert predicted["changed"] and host.file.exists() and more.exists()
    assert host.run("", **leave)["changed"]
    assert not host.file.parent.exists() and not more.parent.exists()
    assert not list(RECORDS.glob(f"{host.name}.*"))
    assert not host.run("", **leave)["changed"]


def test_a_second_run_waits_for_the_first_and_says_for_whom(tmp_path: Path) -> None:
    code = (
        LOADER + "import sys\n"
        "from ansible_collections.prime_spark.fleet.plugins.module_utils.undo import locked\n"
        f"with locked('example', directory={str(tmp_path)!r}):\n"
        " print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        started = time.monotonic()
        said = f"still at work on example .process {holder.pid}"
        with (
            pytest.raises(TreeError, match=said),
            locked("example", seconds=0.5, directory=str(tmp_path)),
        ):
            pass
        assert time.monotonic() - started >= 0.5
        with locked("other", seconds=0.5, directory=str(tmp_path)):
            pass
        holder.kill()
    # Its end is the lock's end, however it came.
    with locked("example", seconds=5, directory=str(tmp_path)):
        pass


def test_a_way_back_restores_content_mode_links_and_absence(tmp_path: Path) -> None:
    kept, new, link = tmp_path / "kept", tmp_path / "new", tmp_path / "current"
    kept.write_text("old")
    kept.chmod(0o640)
    link.symlink_to("release-1")
    before = Snapshot.of([str(kept), str(new)], [str(link)])
    kept.write_text("changed")
    kept.chmod(0o600)
    new.write_text("added")
    link.unlink()
    link.symlink_to("release-2")
    before.restore()
    assert kept.read_text() == "old" and kept.stat().st_mode & 0o777 == 0o640
    assert not new.exists()
    assert os.readlink(link) == "release-1"


def test_a_directory_that_another_tree_has_stays(tmp_path: Path) -> None:
    records, shared, own = tmp_path / "records", tmp_path / "shared", tmp_path / "own"
    for path in (records, shared, own):
        path.mkdir()
    for name, directories in (("a", [str(shared), str(own)]), ("b", [str(shared)])):
        (records / f"{name}.json").write_text(json.dumps({"directories": directories}))
    params = {"name": "a", "files": [], "secret_files": [], "directories": [], "validate": []}
    assert Tree(params, record_dir=str(records)).empty_directories() == [str(own)]


@needs_root
def test_what_was_changed_behind_the_runs_back_is_put_back_and_applied_again(host: Host) -> None:
    host.run("one\n")
    host.file.write_text("by hand\n")
    # As somebody would who restarts the service by hand.
    host.applied.write_text("by hand\n")
    predicted = host.run("one\n", check=True)
    assert predicted["changed"] and any("apply" in text for text in predicted["changes"])
    assert host.run("one\n")["changes"] == predicted["changes"]
    assert (host.file.read_text(), host.applied.read_text()) == ("one\n", "one\n")
    assert not host.run("one\n")["changed"]


@needs_root
def test_what_the_kernel_has_loaded_is_loaded_again(host: Host) -> None:
    loaded = {"loaded": [["cat", str(host.applied)]]}
    host.run("one\n", **loaded)
    assert not host.run("one\n", **loaded)["changed"]
    host.applied.write_text("flushed\n")
    assert host.run("one\n", check=True, **loaded)["changed"]
    assert host.run("one\n", **loaded)["changed"]
    assert host.applied.read_text() == "one\n"
    assert not host.run("one\n", **loaded)["changed"]

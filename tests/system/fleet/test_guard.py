"""The guard itself: a group without hosts is an error, never a skipped test."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.system.fleet import fleet

LISTING = {
    "_meta": {"hostvars": {"a": {}, "b": {}}},
    "all": {"children": ["parent", "empty"]},
    "parent": {"children": ["child"], "hosts": ["b"]},
    "child": {"hosts": ["a"]},
    "empty": {},
}


def test_members_are_those_of_the_children_too() -> None:
    assert fleet.members("parent", LISTING) == ["a", "b"]
    assert fleet.members("all", LISTING) == ["a", "b"]


@pytest.mark.parametrize("group", ["empty", "no_such_group"])
def test_a_group_without_hosts_is_an_error(group: str) -> None:
    with pytest.raises(fleet.NoHostError, match=f"group '{group}'"):
        fleet.members(group, LISTING)


def test_pytest_ends_with_an_error_where_a_group_has_no_host(tmp_path: Path) -> None:
    test = tmp_path / "test_nowhere.py"
    test.write_text(
        "from tests.system.fleet.fleet import on\n"
        "@on('no_such_group')\n"
        "def test_nothing(host): pass\n"
        "def test_another(): pass\n"
    )
    options = ["-p", "no:cacheprovider", "--import-mode=importlib", "-c", "/dev/null"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(test)],
        cwd=fleet.ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == pytest.ExitCode.INTERRUPTED, done.stdout
    assert "no host in the inventory's group 'no_such_group'" in done.stdout


def test_waiting_says_what_was_seen_last() -> None:
    looks = iter(range(100))
    with pytest.raises(AssertionError, match=r"a number: not within 0 s, seen last: 0"):
        fleet.wait_until("a number", lambda: next(looks), 0, good=lambda n: n > 99)
    seen = fleet.wait_until("a number", lambda: next(looks), 5, lambda n: n > 5, interval=0)
    assert seen == 6

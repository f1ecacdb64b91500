"""Snapshots of the lab: an interrupted command leaves the old state or the new one, never a mix.

In plain directories; tests/system/lab has the same commands on btrfs and with hosts.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from lab import disks
from lab.common import LabError

HOST = "nas-1"


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state directory with disks, keys and secrets of their first generation."""
    monkeypatch.setenv("PRIME_SPARK_LAB_DISKS", "directory")
    top = tmp_path / "disks"
    monkeypatch.setattr(disks, "STATE", tmp_path)
    monkeypatch.setattr(disks, "SSH", tmp_path / "ssh")
    monkeypatch.setattr(disks, "DISKS", top)
    monkeypatch.setattr(disks, "DISKS_IMAGE", tmp_path / "disks.btrfs")
    monkeypatch.setattr(disks, "VOLUMES", top / "volumes")
    monkeypatch.setattr(disks, "SNAPSHOTS", top / "snapshots")
    monkeypatch.setattr(disks, "CURRENT", top / "current")
    start()
    (disks.CURRENT / HOST / "upper").mkdir(parents=True)
    (disks.CURRENT / HOST / "base").write_text("trixie-1\n")
    (tmp_path / "bases/trixie-1").mkdir(parents=True)
    for name in ("ssh", "secrets"):
        (tmp_path / name).mkdir()
    (tmp_path / "ssh/control").mkdir()
    write(tmp_path, "first")
    return tmp_path


def start() -> None:
    """What the supervisor does before it boots hosts."""
    disks.attach()
    disks.ensure_current()


def write(state: Path, generation: str) -> None:
    """Change disks, keys and secrets."""
    for path in (disks.CURRENT / HOST / "upper/f", state / "ssh/id", state / "secrets/vault.yml"):
        path.write_text(generation)
    (state / "ssh/config").write_text(f"of the checkout, {generation}")
    (state / "secrets" / f"only-{generation}").touch()


def read(state: Path) -> tuple[Any, ...]:
    """What `write` changed."""
    upper = (disks.CURRENT / HOST / "upper/f").read_text()
    files = sorted(path.name for path in (state / "secrets").iterdir())
    return upper, (state / "ssh/id").read_text(), (state / "secrets/vault.yml").read_text(), files


def test_restoring_brings_back_disks_keys_and_secrets(state: Path) -> None:
    first = read(state)
    disks.save("a", "k", [HOST])
    write(state, "second")
    (state / "ssh/id").chmod(0o600)
    disks.restore("a")
    assert read(state) == first
    assert (state / "ssh/config").read_text() == "of the checkout, second"
    assert (state / "ssh/control").is_dir()
    write(state, "third")
    disks.restore("a")
    assert read(state) == first, "a snapshot does not change with the disks made of it"
    disks.forget("a")
    assert read(state) == first
    assert len(list(disks.VOLUMES.iterdir())) == 1


def test_a_fleet_comes_back_when_disks_keys_and_secrets_are_gone(state: Path) -> None:
    first = read(state)
    disks.save("a", "k", [HOST])
    disks.drop_current()
    for name in ("ssh", "secrets"):
        for path in (state / name).iterdir():
            if path.is_file():
                path.unlink()
    start()
    assert not (disks.CURRENT / HOST).exists()
    disks.restore("a")
    assert read(state) == first


def test_a_snapshot_is_refused_unless_it_is_the_one_that_was_asked_for(state: Path) -> None:
    bases = state / "bases"
    disks.save("a", "k", [HOST])
    assert disks.check("a", "k", bases)["hosts"] == [HOST]
    assert disks.check("a", None, bases)["key"] == "k"
    with pytest.raises(disks.NoSnapshotError, match="has the key k, not other"):
        disks.check("a", "other", bases)
    with pytest.raises(disks.NoSnapshotError, match="there is no snapshot b"):
        disks.check("b", "k", bases)
    with pytest.raises(disks.NoSnapshotError, match="there is no snapshot b"):
        disks.forget("b")
    (bases / "trixie-1").rmdir()
    with pytest.raises(disks.NoSnapshotError, match="the base trixie-1, which is gone"):
        disks.check("a", "k", bases)


def test_bases_of_snapshots_are_in_use(state: Path) -> None:
    disks.save("a", "k", [HOST])
    (disks.CURRENT / HOST / "base").write_text("trixie-2\n")
    assert disks.used_bases() == {"trixie-1", "trixie-2"}


@pytest.mark.parametrize("name", ["", "..", "../x", "a/b", "-x", ".x", "A b"])
def test_names_stay_inside(name: str) -> None:
    with pytest.raises(LabError):
        disks.check_name(name)


def test_disks_of_an_older_lab_are_refused(state: Path) -> None:
    (disks.DISKS / HOST / "upper").mkdir(parents=True)
    with pytest.raises(LabError, match="destroy --disks"):
        disks.attach()
    assert disks.remove()
    start()


def crash_at(line: int, action: Callable[[], None]) -> bool:
    """Run `action` in a child that dies at the given line of disks.py; False: it ended before."""
    child = os.fork()
    if child == 0:
        left = line

        def count(frame: FrameType, event: str, _: Any) -> Any:
            nonlocal left
            if frame.f_code.co_filename != disks.__file__:
                return None
            if event == "line":
                left -= 1
                if left == 0:
                    os._exit(9)
            return count

        sys.settrace(count)
        try:
            action()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def test_a_crash_while_saving_leaves_the_old_snapshot_or_the_new_one(state: Path) -> None:
    disks.save("a", "first", [HOST])
    write(state, "second")
    now = read(state)
    seen = []
    line = 1
    while crash_at(line, lambda: disks.save("a", "second", [HOST])):
        start()
        assert read(state) == now, "the disks themselves are not touched"
        key = disks.check("a", None, state / "bases")["key"]
        assert (disks.SNAPSHOTS / "a" / HOST / "upper/f").read_text() == key
        assert (disks.SNAPSHOTS / "a/identity/secrets/vault.yml").read_text() == key
        assert len(list(disks.VOLUMES.iterdir())) == 2, "no half volume is left"
        seen.append(key)
        line += 3  # every third line, to be quick
    assert sorted(set(seen)) == ["first", "second"] and seen == sorted(seen)


def test_a_crash_while_restoring_leaves_the_old_state_or_the_new_one(state: Path) -> None:
    first = read(state)
    disks.save("a", "k", [HOST])
    seen = []
    line = 1
    while True:
        write(state, "second")
        second = read(state)
        if not crash_at(line, lambda: disks.restore("a")):
            break
        start()
        assert read(state) in (first, second)
        seen.append(read(state)[0])
        assert len(list(disks.VOLUMES.iterdir())) == 2
        line += 3
    assert sorted(set(seen)) == ["first", "second"] and seen == sorted(seen, reverse=True)

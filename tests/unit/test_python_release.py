"""python_release: a release is named by everything that goes into it, and old ones go."""

from __future__ import annotations

import os
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

action: Any = sys.modules["prime_spark_action.python_release"]
module: Any = sys.modules["prime_spark_modules.python_release"]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "src/package/migrations").mkdir(parents=True)
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    (tmp_path / "src/package/__init__.py").write_text("VALUE = 1\n")
    (tmp_path / "src/package/migrations/0001.sql").write_text("SELECT 1;\n")
    (tmp_path / "lock.txt").write_text("msgspec==1\n")
    return tmp_path


def name(source: Path, target: str = "x86_64-py313") -> str:
    return str(action.release_hash(str(source), str(source / "lock.txt"), target))


@pytest.mark.parametrize(
    "changed",
    ["pyproject.toml", "src/package/__init__.py", "src/package/migrations/0001.sql", "lock.txt"],
)
def test_every_input_changes_the_name(source: Path, changed: str) -> None:
    before = name(source)
    with (source / changed).open("a") as stream:
        stream.write("\n")
    assert name(source) != before


def test_the_target_changes_the_name_and_compiled_files_do_not(source: Path) -> None:
    before = name(source)
    assert name(source, "aarch64-py311") != before
    (source / "src/package/__pycache__").mkdir()
    (source / "src/package/__pycache__/x.cpython-313.pyc").write_bytes(b"")
    assert name(source) == before


def test_a_moved_line_between_two_files_changes_the_name(source: Path) -> None:
    before = name(source)
    (source / "src/package/__init__.py").write_text("")
    (source / "src/package/other.py").write_text("VALUE = 1\n")
    assert name(source) != before


def releases(root: Path, count: int) -> list[Path]:
    made = []
    for number in range(count):
        path = root / f"release{number}"
        path.mkdir(parents=True)
        (path / module.MARKER).write_text("")
        os.utime(path, (1000 + number, 1000 + number))
        made.append(path)
    return made


def test_the_newest_three_and_the_current_release_stay(tmp_path: Path) -> None:
    made = releases(tmp_path, 6)
    module.prune(str(tmp_path), 3, {str(made[0])})
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "release0",
        "release3",
        "release4",
        "release5",
    ]


def test_an_unfinished_release_goes(tmp_path: Path) -> None:
    releases(tmp_path, 2)
    (tmp_path / "release1" / module.MARKER).unlink()
    module.prune(str(tmp_path), 3, set())
    assert [p.name for p in tmp_path.iterdir()] == ["release0"]


def test_a_damaged_archive_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    archive = tmp_path / "release.tar"
    with tarfile.open(archive, "w"):
        pass
    with pytest.raises(module.ReleaseError, match="damaged"):
        module.unpack(str(archive), "0" * 64, str(tmp_path / "artifact"))
    assert [p.name for p in tmp_path.iterdir()] == ["release.tar"]

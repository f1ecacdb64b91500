"""python_release: a release is named by everything that goes into it, and old ones go."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
from ansible_collections.prime_spark.fleet.plugins.action import python_release as action
from ansible_collections.prime_spark.fleet.plugins.modules import python_release as module

ROOT = Path(__file__).resolve().parents[2]


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
        os.utime(path / module.MARKER, (1000 + number, 1000 + number))
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


def test_a_release_that_is_used_again_is_the_newest(tmp_path: Path) -> None:
    made = releases(tmp_path, 4)
    module.mark(str(made[0]))
    module.prune(str(tmp_path), 2, set())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["release0", "release3"]


def archive_with(tmp_path: Path, size: int) -> tuple[str, str]:
    (tmp_path / "content").write_bytes(os.urandom(size))
    archive = tmp_path / "release.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(tmp_path / "content", "wheel/content")
    return str(archive), action.file_digest(str(archive))


def test_a_disk_that_fills_while_unpacking_gets_its_space_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive, digest = archive_with(tmp_path, 10)

    def full(*_: object, **__: object) -> None:
        (tmp_path / "artifacts/release.partial/half").write_bytes(b"x")
        raise OSError(errno.ENOSPC, "No space left on device", "half")

    monkeypatch.setattr(tarfile.TarFile, "extractall", full)
    with pytest.raises(OSError) as caught:
        module.unpack(archive, digest, str(tmp_path / "artifacts/release"))
    assert list((tmp_path / "artifacts").iterdir()) == []
    said = module.describe(caught.value, str(tmp_path))
    assert "no space left on the disk of half" in said
    assert "the release before stays in use" in said


def test_an_archive_that_changed_in_the_cache_is_refused(tmp_path: Path) -> None:
    archive, digest = archive_with(tmp_path, 1000)
    Path(f"{archive}.sha256").write_text(digest)
    assert action.checked_digest(archive) == digest
    flip_a_byte(Path(archive))
    with pytest.raises(action.AnsibleActionFail, match="changed since it was made"):
        action.checked_digest(archive)


def test_a_wheel_that_changed_in_the_cache_is_refused(tmp_path: Path) -> None:
    wheel = tmp_path / "house" / "some-1-py3-none-any.whl"
    wheel.parent.mkdir()
    wheel.write_bytes(os.urandom(1000))
    lock = tmp_path / "lock.txt"
    lock.write_text(f"some==1 \\\n    --hash=sha256:{action.file_digest(str(wheel))}\n")
    action.check_wheelhouse(str(wheel.parent), str(lock))
    flip_a_byte(wheel)
    with pytest.raises(action.AnsibleActionFail, match=r"some-1-py3-none-any\.whl is not what"):
        action.check_wheelhouse(str(wheel.parent), str(lock))


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_uploads_of_killed_runs_go_and_others_stay(tmp_path: Path) -> None:
    name = "0123456789abcdef.tar"
    for directory, age in (("own", 0), ("running", 60), ("killed", 7200)):
        path = tmp_path / f"ansible-tmp-{directory}" / name
        path.parent.mkdir()
        path.write_text("")
        os.utime(path, (time.time() - age,) * 2)
    (tmp_path / "ansible-tmp-else").mkdir()
    module.forget_uploads(str(tmp_path / "ansible-tmp-own" / name))
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "ansible-tmp-else",
        "ansible-tmp-own",
        "ansible-tmp-running",
    ]


def test_the_lab_prepares_releases_by_the_same_names(tmp_path: Path) -> None:
    """The archive that is in the cache is not made again."""
    source = ROOT / "files/python_services"
    lock = source / "locks/x86_64-py313.txt"
    made = tmp_path / f"releases/{action.release_hash(str(source), str(lock), 'x86_64-py313')}.tar"
    made.parent.mkdir()
    made.touch()
    code = (
        "from lab import releases as r; r.targets = lambda: ['x86_64-py313']; r.build(r.SERVICES)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PRIME_SPARK_CACHE": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in made.parent.iterdir()) == [".lock", made.name]

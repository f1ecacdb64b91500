"""What modules, plugins, the lab and the tools share: locks, replacing files, running programs."""

from __future__ import annotations

from pathlib import Path

import pytest
from ansible_collections.prime_spark.fleet.plugins.module_utils.atomic import (
    replace_file,
    replace_link,
)
from ansible_collections.prime_spark.fleet.plugins.module_utils.lock import exclusive
from ansible_collections.prime_spark.fleet.plugins.module_utils.process import (
    NOT_FOUND,
    TIMED_OUT,
    attempt,
    run,
)

PLUGINS = Path(__file__).resolve().parents[2] / "plugins"


@pytest.mark.parametrize("name", ["", "made.lock"], ids=["directory", "file"])
def test_a_lock_is_held_once_and_free_after_a_failure(tmp_path: Path, name: str) -> None:
    path, waited = tmp_path / name, []
    with pytest.raises(ZeroDivisionError), exclusive(path):
        with pytest.raises(TimeoutError), exclusive(path, 0.3, waiting=lambda: waited.append(1)):
            pytest.fail("two hold it")
        raise ZeroDivisionError
    assert waited == [1]
    with exclusive(path, 0):
        pass


def test_a_lock_does_not_follow_a_link_to_a_file_of_somebody_else(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("as it was")
    (tmp_path / "lock").symlink_to(precious)
    with pytest.raises(OSError), exclusive(tmp_path / "lock"):
        pass
    assert precious.read_text() == "as it was"


def test_who_reads_while_a_file_is_replaced_reads_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with path.open() as reader:
        replace_file(path, "new", 0o640)
        assert reader.read() == "old"
    assert (path.read_text(), path.stat().st_mode & 0o7777) == ("new", 0o640)
    replace_file(path, b"private")
    assert (path.read_bytes(), path.stat().st_mode & 0o7777) == (b"private", 0o600)
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_cannot_be_replaced_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    with pytest.raises(IsADirectoryError):
        replace_file(tmp_path / "directory", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["directory"]


def test_a_link_is_replaced_also_after_a_run_that_was_killed(tmp_path: Path) -> None:
    link = tmp_path / "new" / "current"
    replace_link(link, "old")
    (tmp_path / "new/current.prime-spark-new").symlink_to("half")
    replace_link(link, "release")
    assert [(path, path.readlink()) for path in link.parent.iterdir()] == [(link, Path("release"))]


class WrongError(Exception):
    """What a caller wants raised."""


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["sh", "-c", "cat; echo out; echo why >&2; exit 3"], "` failed: why"),
        (["sh", "-c", "cat >/dev/null; echo out; exit 3"], "` failed: out"),
        (["sleep", "60"], "`sleep 60` did not end within 0 s"),
        (["no-such-program"], "no-such-program is not installed: install it"),
    ],
)
def test_a_failure_quotes_the_program_and_never_its_input(argv: list[str], said: str) -> None:
    with pytest.raises(WrongError) as caught:
        run(argv, WrongError, stdin="secret", timeout=0.4, remedy="install it")
    assert str(caught.value).endswith(said) and "secret" not in str(caught.value)


def test_what_is_only_tried_tells_its_end_by_a_status() -> None:
    assert run(["cat"], WrongError, stdin="text") == "text"
    assert attempt(["sh", "-c", "exit 3"]).returncode == 3
    late = attempt(["sleep", "60"], timeout=0.4)
    assert (late.returncode, late.stderr) == (TIMED_OUT, "no answer within 0.4 s")
    missing = attempt(["no-such-program"])
    assert (missing.returncode, missing.stderr) == (NOT_FOUND, "no-such-program is not installed")


@pytest.mark.parametrize(
    ("call", "place"),
    [("flock(", "lock"), ("mkstemp(", "atomic"), ("subprocess.run(", "process")],
)
def test_plugins_have_one_of_each_and_it_needs_no_ansible(call: str, place: str) -> None:
    using = [path for path in PLUGINS.rglob("*.py") if call in path.read_text()]
    assert using == [PLUGINS / f"module_utils/{place}.py"]
    assert "ansible" not in using[0].read_text()

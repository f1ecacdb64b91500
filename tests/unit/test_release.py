"""`make release` refuses a version that is not complete."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tools import release

ROOT = Path(__file__).resolve().parents[2]
CHANGELOG = "# Changelog\n\n## 1.2.0\n\n**To do**\n\n- Nothing.\n\n## 1.1.0\n\nOlder.\n"


def git(root: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(["git", "-C", root, *identity, *arguments], check=True, capture_output=True)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository whose version can be released."""
    git(tmp_path, "init")
    (tmp_path / "galaxy.yml").write_text("version: 1.2.0\n")
    (tmp_path / "CHANGELOG.md").write_text(CHANGELOG)
    commit(tmp_path)
    return tmp_path


def commit(root: Path) -> None:
    git(root, "add", "--all")
    git(root, "commit", "--allow-empty", "--message", "x")


def test_a_complete_version_is_not_refused(root: Path) -> None:
    assert release.missing(root) == []


@pytest.mark.parametrize(
    ("file", "content", "expected"),
    [
        ("galaxy.yml", "version: 1.3.0\n", "CHANGELOG.md begins with 1.2.0"),
        ("galaxy.yml", "version: latest\n", "expected three numbers"),
        ("CHANGELOG.md", "# Changelog\n", "CHANGELOG.md has no entry"),
        ("CHANGELOG.md", "## 1.2.0\n\nNews.\n\n## 1.1.0\n\n**To do**\n", "1.2.0 lacks the part"),
    ],
)
def test_an_incomplete_version_is_refused(
    root: Path, file: str, content: str, expected: str
) -> None:
    (root / file).write_text(content)
    commit(root)
    assert expected in "\n".join(release.missing(root))


def test_a_change_that_is_not_committed_is_named(root: Path) -> None:
    (root / "new").write_text("")
    (line,) = release.missing(root)
    assert line == "the tree has changes that are not committed: ?? new"


def test_a_version_is_released_once(root: Path) -> None:
    git(root, "tag", "v1.2.0")
    (line,) = release.missing(root)
    assert "the tag v1.2.0 exists" in line


def test_the_entry_of_this_version_says_what_to_do() -> None:
    assert [line for line in release.missing(ROOT) if line.startswith("CHANGELOG")] == []

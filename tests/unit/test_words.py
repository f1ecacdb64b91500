"""Nothing that people read uses a word of the glossary's left column; identifiers neither."""

from __future__ import annotations

import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
GLOSSARY = ROOT / "docs/glossary.md"
# The glossary names the words, this test tries them; the others are not ours or tell the past.
EXCEPT = {"docs/glossary.md", "tests/unit/test_words.py", "LICENSE", "CHANGELOG.md"}
# Their words are not revised yet.
UNREVISED = re.compile(r"(^|/)[a-z_]*hook|^tests/system/")
TEXT = {".md", ".py", ".yml", ".j2", ".toml", ".sql", ".sh", ".service", ".timer", ".json", ".html"}


@cache
def banned() -> tuple[str, ...]:
    """What stands in the left column of the first table."""
    table = GLOSSARY.read_text().partition("## Terms of")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| ")]
    return tuple(word.strip() for row in rows[1:] for word in row.split(","))


@cache
def pattern() -> re.Pattern[str]:
    """Banned words; an underscore ends a word as a space does, and stands for one."""
    words = "|".join(
        re.escape(word).replace(r"\ ", "[ _]").replace("_", "[ _]") for word in banned()
    )
    return re.compile(rf"(?<![A-Za-z])(?:{words})(?![A-Za-z])", re.IGNORECASE)


def found(text: str) -> list[str]:
    """The banned words of a text, each with the number of its line."""
    # A sentence may be broken between two words.
    joined = re.sub(r"\n[ #*/|-]*", lambda gap: "\n" + " " * (len(gap[0]) - 1), text)
    return [
        f"{text.count(chr(10), 0, match.start()) + 1}: {' '.join(match[0].split())}"
        for match in pattern().finditer(joined)
    ]


def read_files() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\0")
    return [
        ROOT / name
        for name in listed
        if name
        and name not in EXCEPT
        and not UNREVISED.search(name)
        and (Path(name).suffix in TEXT or Path(name).name in {"Makefile", "check"})
        and (ROOT / name).is_file()
    ]


def test_the_words_of_the_glossary() -> None:
    assert {"judge", "carry_on", "anew"} <= set(banned())
    lines = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in read_files()
        for line in found(path.read_text(errors="replace"))
    ]
    assert lines == [], "docs/glossary.md has the term to use instead"


@pytest.mark.parametrize(
    "text",
    [
        "The rules judge it.",
        "def _judge(x): ...",
        "async def carry_on(self): ...",
        "Carry on.",
        "started anew",
        "x = PriorityPlaces(1)",
    ],
)
def test_a_banned_word_is_found(text: str) -> None:
    assert found(text)


@pytest.mark.parametrize("text", ["misjudgement", "The settled state", "renewed", "Validate it."])
def test_other_words_are_not(text: str) -> None:
    assert found(text) == []

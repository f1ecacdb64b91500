"""docs/decisions.md is numbered without a gap, and every decision is dated and has three parts."""

from __future__ import annotations

import re
from datetime import date
from pathlib import Path

TEXT = (Path(__file__).resolve().parents[2] / "docs/decisions.md").read_text()


def test_every_decision_is_numbered_dated_and_whole() -> None:
    _, *found = re.split(r"^## ", TEXT, flags=re.MULTILINE)
    assert found
    for number, decision in enumerate(found, start=1):
        heading = decision.partition("\n")[0]
        form = (
            rf"{number:04}\. .+\n\nDate: (\S+)\n\n"
            r"\*\*Context\.\*\* .+\*\*Decision\.\*\* .+\*\*Consequence\.\*\* .+"
        )
        match = re.fullmatch(form, decision.strip(), re.DOTALL)
        assert match, (
            f"{heading}: expected number {number:04}, Date, Context, Decision, Consequence"
        )
        date.fromisoformat(match[1])

"""What was changed by hand is named by drift, predicted by check mode and mended by a plain run.

The cases of a round are planted together; `make test-full` plants each alone as well.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.system.drift.cases import CASES, Case
from tests.system.fleet import fleet
from tests.system.predictions.record import Change, compare, play

SITE = ("--skip-tags", "verify")
ROUNDS = sorted({case.round for case in CASES})
GROUPS = [[case for case in CASES if case.round == number] for number in ROUNDS]
SEEN: list[str] = []
# What the scripts of the cases said on standard error.
SAID: dict[str, str] = {}

pytestmark = pytest.mark.timeout(1800)


def drift() -> dict[str, Any]:
    """What `make drift` reports."""
    command = [sys.executable, "tools/drift.py", "--json"]
    done = subprocess.run(command, cwd=fleet.ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode in (0, 2), done.stderr
    return dict(json.loads(done.stdout)["hosts"])


def on_each(cases: list[Case], scripts: dict[str, str]) -> dict[str, str]:
    """Run a script for each case on its host, hosts beside each other; what each printed."""

    def one(host: str) -> dict[str, str]:
        found = {}
        for case in cases:
            if case.host == host:
                result = fleet.connect(host).run("timeout 120 bash -c %s", scripts[case.name])
                found[case.name] = f"{result.rc}\n{result.stdout}"
                SAID[case.name] = str(result.stderr)
        return found

    with ThreadPoolExecutor() as pool:
        parts = pool.map(one, sorted({case.host for case in cases}))
        return {name: text for part in parts for name, text in part.items()}


def not_named(cases: list[Case], report: dict[str, Any]) -> list[str]:
    """The cases that drift does not name."""
    missing = []
    for case in cases:
        entry = report[case.host]["roles"].get(case.role, {"state": "-", "why": []})
        named = any(re.search(case.says, sentence) for sentence in entry["why"])
        if entry["state"] == "in sync" or not named:
            missing.append(f"{case.name}: {case.host} {case.role}: {entry}")
    return missing


def run_through(cases: list[Case]) -> None:
    """Plant the cases, then look, predict, mend, and run again."""
    shows = {case.name: case.show for case in cases}
    before = on_each(cases, shows)
    planted = on_each(cases, {case.name: case.plant for case in cases})
    failed = {name: SAID[name] for name, text in planted.items() if not text.startswith("0\n")}
    assert failed == {}, "cannot be planted"
    changed = on_each(cases, shows)
    assert [name for name in before if changed[name] == before[name]] == [], "changes nothing"
    report = drift()
    # Shown when one of the runs fails.
    print("\n".join(not_named(cases, report)))
    predicted: set[Change] = play("--check", *SITE)
    applied: set[Change] = play(*SITE)
    problems = [f"not named: {line}" for line in not_named(cases, report)]
    problems += compare(predicted, applied).splitlines()
    # What nobody touched is not played, so it cannot change.
    touched = {(case.host, case.role) for case in cases}
    named = {
        (host, role)
        for host, entry in report.items()
        for role, found in entry["roles"].items()
        if found["state"] != "in sync"
    }
    problems += [f"named, but not planted: {pair}" for pair in sorted(named - touched)]
    after = on_each(cases, shows)
    problems += [
        f"not mended: {name}: {before[name]!r}, now {after[name]!r}"
        for name in before
        if after[name] != before[name]
    ]
    again = play(*SITE)
    problems += [f"changed again: {change}" for change in sorted(again)]
    left = {host: entry["roles"] for host, entry in drift().items() if entry["state"] != "in sync"}
    problems += [f"still drifted: {left}"] if left else []
    assert problems == [], "\n".join(problems)


@pytest.fixture(scope="module", autouse=True)
def in_sync() -> None:
    """Every case starts from a fleet that is in sync."""
    if any(entry["state"] != "in sync" for entry in drift().values()):
        play(*SITE)
    assert {host: entry["state"] for host, entry in drift().items()} == dict.fromkeys(
        drift(), "in sync"
    )


@pytest.mark.parametrize("number", ROUNDS)
def test_many_changes_at_once(number: int) -> None:
    run_through(GROUPS[ROUNDS.index(number)])
    SEEN.extend(case.name for case in GROUPS[ROUNDS.index(number)])


@pytest.mark.skipif(not fleet.FULL, reason="the long form plants each change alone")
@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_each_change_alone(case: Case) -> None:
    run_through([case])


def test_a_run_that_plays_everything_changes_nothing() -> None:
    """What was left out by all these runs is as a run that leaves out nothing wants it."""
    assert play(*SITE, "--extra-vars", json.dumps({"full": True})) == set()


def test_every_role_has_a_case() -> None:
    roles = {path.name for path in (fleet.ROOT / "roles").iterdir()} - {"python_service"}
    assert roles - {case.role for case in CASES} == set()
    print(f"drifts found, predicted and mended: {len(SEEN)} of {len(CASES)}")

"""Every playbook refuses a --limit whose names the inventory lacks, before it contacts a host."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.prime_spark.fleet.plugins.action import check_limit as ACTION

from tests.unit.test_validate_inventory import inventory, written
from tests.unit.warm import playbook, processes

ROOT = Path(__file__).resolve().parents[2]
CALLED = (
    "adopt",
    "bootstrap",
    "drift",
    "remove",
    "rollback",
    "rotate",
    "site",
    "validate",
    "verify",
)
# What others import, and nobody calls.
PARTS = ("facts", "leftovers", "limit", "plan")
# A host and a typo; all but a typo, which is all.
LIMITS = ("primecore1,primcore4", "managed,!primcore4")
# The check itself, and playbooks that begin with it and not with validate.yml.
RUNS = ("validate", "remove", "rollback", "rotate", "verify")


def first(name: str) -> str:
    """The name of the playbook whose play a run of a playbook begins with."""
    entry = yaml.safe_load((ROOT / "playbooks" / f"{name}.yml").read_text())[0]
    imported = entry.get("ansible.builtin.import_playbook")
    return first(imported.removesuffix(".yml")) if imported else name


def test_every_playbook_begins_with_the_check() -> None:
    names = {path.stem for path in (ROOT / "playbooks").glob("*.yml")}
    assert names == {*CALLED, *PARTS}
    assert {name: first(name) for name in CALLED} == dict.fromkeys(CALLED, "limit")


GROUPS = {"all": ["hub", "spoke-1", "spoke-2"], "ungrouped": [], "edge": ["hub"]}


@pytest.mark.parametrize(
    ("limit", "said"),
    [
        ("", []),
        ("hub,edge", []),
        ("all:!edge:&spoke-1", []),
        ("spoke-*,!edge[0],~sp.*-1,spoke-[!3]", []),
        ("@retry", []),
        ("spoke_1", ["spoke_1 is neither a host nor a group of the inventory; "
                     "did you mean spoke-1 or spoke-2?"]),
        ("hub,!egde", ["egde is neither a host nor a group of the inventory; did you mean edge?"]),
        ("hub,&x", ["x is neither a host nor a group of the inventory"]),
        ("hub,spok-*", ["spok-* matches no host and no group of the inventory"]),
        ("hub,~poke", ["~poke matches no host and no group of the inventory"]),
        ("hub,egde[0]", ["egde is neither a host nor a group of the inventory; "
                         "did you mean edge?"]),
        ("a,b", [f"{name} is neither a host nor a group of the inventory" for name in "ab"]),
    ],
)  # fmt: skip
def test_names_and_patterns_that_match_nothing_are_named(limit: str, said: list[str]) -> None:
    assert ACTION.problems(limit, GROUPS) == said


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """Exit status, output and contacted hosts of the playbooks, two at a time."""
    started: dict[str, tuple[Future[Any], Path, Path]] = {}
    with processes(2) as warm:
        for number, name in enumerate(RUNS):
            directory, limit = tmp_path_factory.mktemp(name), LIMITS[number % 2]
            arguments, environment, contacted = written(directory, inventory())
            arguments += [f"playbooks/{name}.yml", "--limit", limit]
            arguments += ["-e", "role=cli", "-e", "service=telemetry", "-e", "rotate_secret=x"]
            output = directory / "output"
            started[name] = warm.submit(playbook, arguments, environment, output), output, contacted
        directory = tmp_path_factory.mktemp("others")
        arguments, environment, contacted = written(directory, inventory())
        for name, *more in (
            ("no rotation", *arguments, "playbooks/rotate.yml"),
            ("nobody", "-i", "one,", "playbooks/verify.yml"),
        ):
            output = directory / name
            started[name] = warm.submit(playbook, more, environment, output), output, contacted
        yield started


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        (
            "nobody",
            "the inventory has no managed hosts: no host is in the groups managed",
        ),
        (
            "no rotation",
            "rotate_secret has no value before it to try: `make rotate SECRET=vault_…`",
        ),
    ],
)
def test_a_run_that_would_prove_nothing_is_refused(
    name: str, sentence: str, runs: dict[str, Any]
) -> None:
    done, output, contacted = runs[name]
    status, _ = done.result()
    said = " ".join(output.read_text().split())
    assert status == 2 and sentence in said, said
    assert not contacted.exists(), said


@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_refused_that_would_be_on_less_or_more(name: str, runs: dict[str, Any]) -> None:
    done, output, contacted = runs[name]
    status, _ = done.result()
    said = output.read_text()
    assert status == 2, said
    assert not contacted.exists(), said
    wrong = "--limit: primcore4 is neither a host nor a group of the inventory"
    assert f"{wrong}; did you mean primecore4 or primecore1?" in said

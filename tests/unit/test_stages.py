"""tools/stages.py: what is run, kept and left out, and the lists of tests/stages.toml."""

from __future__ import annotations

import ast
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from tools import stages
from tools.mutate import Mutation, read_lists
from tools.stages import (
    Record,
    Row,
    Stage,
    Table,
    Touched,
    matches,
    read_table,
    report,
    run,
    select,
)

ROOT = Path(__file__).resolve().parents[2]
RAW = tomllib.loads(stages.TABLE.read_text())

LINT = Stage("lint", "lint", ("test",))
LAB = Stage("lab", "boot", ("test",), again="resume")
FLEET = Stage("fleet", "look", ("test",), needs=("lab",))
OTHER = Stage("other", "other", ("test",))


class Shell:
    """Says which commands fail, and keeps what was asked of it."""

    def __init__(self, *failing: str) -> None:
        self.failing = failing
        self.asked: list[str] = []

    def __call__(self, command: str) -> int:
        self.asked.append(command)
        return int(command in self.failing)


def results(rows: list[Row]) -> dict[str, str]:
    return {row.name: row.result for row in rows}


def test_the_first_failure_ends_a_run() -> None:
    shell = Shell("boot")
    rows = run([LINT, LAB, FLEET, OTHER], execute=shell)
    assert shell.asked == ["lint", "boot"]
    assert [row.result for row in rows] == ["passed", "FAILED", "left out", "left out"]


def test_a_run_that_keeps_going_leaves_out_what_needs_the_failed_stage() -> None:
    shell = Shell("boot")
    rows = run([LINT, LAB, FLEET, OTHER], execute=shell, keep_going=True)
    assert shell.asked == ["lint", "boot", "other"]
    assert results(rows)["fleet"] == "left out"


@pytest.mark.parametrize(
    ("shown", "status", "closing"),
    [
        (["passed", "kept"], 0, "2 passed, 0 failed"),
        (["passed", "FAILED", "left out"], 1, "1 passed, 2 failed"),
    ],
)
def test_the_last_line_counts_stages(shown: list[str], status: int, closing: str) -> None:
    lines: list[str] = []
    assert report([Row(str(n), result, 1.0) for n, result in enumerate(shown)], lines.append) == (
        status
    )
    assert lines[-1] == closing
    # One line for each stage, between the heading and the sum.
    assert len(lines) == len(shown) + 3


def test_what_has_passed_for_the_same_tree_is_not_run_again(tmp_path: Path) -> None:
    record, shell = Record(tmp_path / "cache" / "state.json"), Shell("look")
    everything = [LINT, LAB, FLEET]
    run(everything, execute=shell, record=record, identify=lambda: "a tree")
    shell = Shell()
    rows = run(everything, execute=shell, record=record, identify=lambda: "a tree")
    # What is due needs the lab, which is brought back in its cheaper way.
    assert shell.asked == ["resume", "look"]
    assert results(rows) == {"lint": "kept", "lab": "passed", "fleet": "passed"}
    shell = Shell()
    run(everything, execute=shell, record=record, identify=lambda: "a tree")
    assert shell.asked == []
    run(everything, execute=shell, record=record, identify=lambda: "another tree")
    assert shell.asked == ["lint", "boot", "look"]
    shell = Shell()
    run(everything, execute=shell, record=record, identify=lambda: "a tree", again=True)
    assert shell.asked == ["lint", "boot", "look"]


def test_a_stage_during_which_the_tree_changes_has_not_passed_for_it(tmp_path: Path) -> None:
    record, trees = Record(tmp_path / "state.json"), iter(["before", "after"])
    run([LINT], execute=Shell(), record=record, identify=lambda: next(trees))
    assert record.passed("before") == record.passed("after") == {}


def test_the_tree_is_what_git_tracks_or_does_not_ignore(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "ROOT", tmp_path)
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    (tmp_path / ".gitignore").write_text("made\n")
    (tmp_path / "kept").write_text("1")
    subprocess.run(["git", "add", "."], cwd=tmp_path, check=True)
    seen = [stages.tree()]
    (tmp_path / "made").write_text("1")
    assert stages.tree() == seen[0]
    (tmp_path / "new").write_text("1")
    seen.append(stages.tree())
    (tmp_path / "kept").write_text("2")
    seen.append(stages.tree())
    (tmp_path / "kept").chmod(0o755)
    seen.append(stages.tree())
    (tmp_path / "kept").unlink()
    seen.append(stages.tree())
    assert len(set(seen)) == 5


def test_a_changed_file_concerns_its_stages_and_what_they_need() -> None:
    unit = Stage("unit", "unit", (), runs=("tests/unit/*",))
    touched = (
        Touched(("roles/*",), ("fleet",)),
        Touched(("roles/*.py",), ("lint",)),
        Touched(("docs/*",), ()),
    )
    table = Table((LINT, unit, LAB, FLEET, OTHER), touched)
    assert select(table, ["roles/a/b.py"]) == [LINT, LAB, FLEET]
    assert select(table, ["roles/a/b.yml"]) == [LAB, FLEET]
    assert select(table, ["tests/unit/test_a.py"]) == [unit]
    assert select(table, ["docs/a.md"]) == []
    # A file that the table does not know concerns everything that the tier has.
    assert select(table, ["docs/a.md", "nobody/knows"]) == [LINT, LAB, FLEET, OTHER]


def test_what_changed_is_found_whatever_git_knows_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True)

    monkeypatch.setattr(stages, "ROOT", tmp_path)
    git("init", "--quiet", "--initial-branch=main", ".")
    for name in ("stays", "edited", "deleted", "moved", "committed"):
        (tmp_path / name).write_text(name)
    git("add", ".")
    git("commit", "--quiet", "--message=base")
    git("switch", "--quiet", "--create=work")
    (tmp_path / "committed").write_text("another")
    git("commit", "--quiet", "--all", "--message=work")
    (tmp_path / "edited").write_text("another")
    (tmp_path / "deleted").unlink()
    git("mv", "moved", "elsewhere")
    (tmp_path / "new").write_text("new")
    assert stages.changed_files("main") == {
        *("committed", "edited", "deleted", "moved", "elsewhere", "new")
    }


def test_the_committed_table_is_consistent() -> None:
    table = read_table()
    for tier in ("test", "full"):
        names = [stage.name for stage in table.tier(tier)]
        # Whatever a tier runs finds what it needs.
        assert [stage.name for stage in table.with_needs(names)] == names
    assert {s.name for s in table.tier("test")} <= {s.name for s in table.tier("full")}


@pytest.mark.parametrize("entry", RAW["long_form"], ids=lambda entry: entry["test"])
def test_a_long_form_exists_and_has_a_reason(entry: dict[str, str]) -> None:
    file, _, rest = entry["test"].partition("::")
    assert entry["reason"]
    if rest:
        functions = {
            node.name
            for node in ast.parse((ROOT / file).read_text()).body
            if isinstance(node, ast.FunctionDef)
        }
        assert rest.partition("[")[0] in functions
    else:
        assert (ROOT / file).is_file()
    # Some stage of `make test-full` runs it.
    full = [stage.command.split() for stage in read_table().tier("full")]
    assert any(file in words or str(Path(file).parent) in words for words in full)


# --- the map against the mutations ----------------------------------------------------------


def name_of(mutation: Mutation) -> str:
    return f"{mutation.path}-{mutation.suite.stem}"


MUTATIONS = read_lists()


@pytest.mark.parametrize("mutation", MUTATIONS, ids=name_of)
def test_a_mutation_is_in_what_make_test_changed_would_run(mutation: Mutation) -> None:
    selected = select(read_table(), [str(mutation.path)])
    catching = [stage.name for stage in selected if matches(str(mutation.suite), stage.runs)]
    assert catching, f"{mutation.suite} is in none of {', '.join(s.name for s in selected)}"


@pytest.mark.parametrize("mutation", MUTATIONS, ids=name_of)
def test_a_mutation_can_be_applied(mutation: Mutation) -> None:
    text = (ROOT / mutation.path).read_text()
    assert mutation.broken(text) != text


def test_every_role_every_plugin_and_the_lab_has_a_mutation() -> None:
    mutated = {str(mutation.path) for mutation in MUTATIONS}
    roles = {f"roles/{path.name}" for path in (ROOT / "roles").iterdir()}
    assert roles == {"/".join(path.split("/")[:2]) for path in mutated if path.startswith("roles/")}
    kinds = ("action", "callback", "filter", "modules", "module_utils")
    plugins = {f"plugins/{k}/{p.name}" for k in kinds for p in (ROOT / "plugins" / k).glob("*.py")}
    # A module of an action that runs on the controller alone is nothing but documentation.
    code = {p for p in plugins if re.search(r"^(def|class) ", (ROOT / p).read_text(), re.MULTILINE)}
    assert code - mutated == set()
    assert any(path.startswith("lab/") for path in mutated)

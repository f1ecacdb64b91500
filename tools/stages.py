#!/usr/bin/env python
"""Run the stages of tests/stages.toml, one after the other, and end with a table of their seconds.

    tools/stages.py test                  what `make test` runs
    tools/stages.py full [--again]        what `make test-full` runs, without what has passed before
    tools/stages.py changed [--base REF]  what the changes since REF concern
    tools/stages.py only NAME...          single stages

The first stage that fails ends the run; with --keep-going only the stages that need it are left
out. The last line is "N passed, N failed", counted over stages; one that was left out has failed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "tests" / "stages.toml"
# What has passed, by tree and stage; ignored by git.
STATE = ROOT / ".cache" / "stages.json"
# How many trees the record keeps.
TREES = 5


class TableError(Exception):
    """The table is not consistent, or a name is not in it; the message says what."""


@dataclass(frozen=True)
class Stage:
    """One command; `tests/stages.toml` says what the fields mean."""

    name: str
    command: str
    tiers: tuple[str, ...]
    runs: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    again: str = ""


@dataclass(frozen=True)
class Touched:
    """The stages that a changed file concerns when one of the patterns matches its path."""

    paths: tuple[str, ...]
    stages: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """What tests/stages.toml holds, stages in the order in which they run."""

    stages: tuple[Stage, ...]
    touched: tuple[Touched, ...] = ()

    def tier(self, name: str) -> list[Stage]:
        """The stages of a tier."""
        return [stage for stage in self.stages if name in stage.tiers]

    def named(self, names: Collection[str]) -> list[Stage]:
        """Stages by their names, in the table's order. Raises TableError for an unknown name."""
        if unknown := set(names) - {stage.name for stage in self.stages}:
            known = ", ".join(stage.name for stage in self.stages)
            raise TableError(f"no stage {', '.join(sorted(unknown))}; there are {known}")
        return [stage for stage in self.stages if stage.name in names]

    def with_needs(self, names: Collection[str]) -> list[Stage]:
        """Stages and all that they need, in the table's order."""
        wanted, left = set[str](), list(names)
        while left:
            name = left.pop()
            if name not in wanted:
                wanted.add(name)
                left += [need for stage in self.named([name]) for need in stage.needs]
        return self.named(wanted)

    def concerned(self, path: str) -> set[str] | None:
        """The names of the stages that a changed file concerns; None when nothing says so."""
        found = [stage.name for stage in self.stages if matches(path, stage.runs)]
        entries = [entry for entry in self.touched if matches(path, entry.paths)]
        if not entries and not found:
            return None
        return {*found, *(name for entry in entries for name in entry.stages)}


def matches(path: str, patterns: Iterable[str]) -> bool:
    """Whether a path matches one of the patterns, in which * matches / as well."""
    return any(fnmatchcase(path, pattern) for pattern in patterns)


def read_table(path: Path = TABLE) -> Table:
    """Return the table. Raises TableError when it names stages that it has not."""
    raw = tomllib.loads(path.read_text())
    stages = tuple(Stage(**_tuples(entry)) for entry in raw["stage"])
    table = Table(stages, tuple(Touched(**_tuples(e)) for e in raw.get("touched", [])))
    before: set[str] = set()
    for stage in stages:
        if stage.name in before:
            raise TableError(f"two stages {stage.name}")
        if late := set(stage.needs) - before:
            raise TableError(f"{stage.name} needs {', '.join(late)}, which no stage before it is")
        before.add(stage.name)
    for entry in table.touched:
        table.named(entry.stages)
    return table


def _tuples(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(v) if isinstance(v, list) else v for key, v in entry.items()}


def select(
    table: Table, files: Iterable[str], say: Callable[[str], None] = lambda line: None
) -> list[Stage]:
    """Return the stages that changed files concern, with what they need.

    A file that the table does not know concerns all of `make test`.
    """
    names: set[str] = set()
    everything = False
    for file in sorted(files):
        concerned = table.concerned(file)
        say(f"{file}: {'all' if concerned is None else ', '.join(sorted(concerned)) or 'none'}")
        everything = everything or concerned is None
        names |= concerned or set()
    return table.tier("test") if everything else table.with_needs(names)


def git(*arguments: str) -> bytes:
    """What git prints, run in the repository."""
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout


def changed_files(base: str) -> set[str]:
    """Paths that differ from where the work began on `base`, new and deleted ones included."""
    start = git("merge-base", base, "HEAD").decode().strip()
    listed = git("diff", "--name-only", "--no-renames", "-z", start)
    listed += git("ls-files", "--others", "--exclude-standard", "-z")
    return {os.fsdecode(name) for name in listed.split(b"\0") if name}


def tree() -> str:
    """A hash of the contents, modes and names of all files that git tracks or does not ignore."""
    digest = hashlib.sha256()
    listed = git("ls-files", "--cached", "--others", "--exclude-standard", "-z")
    for name in sorted(set(filter(None, listed.split(b"\0")))):
        path = ROOT / os.fsdecode(name)
        if path.is_symlink():
            kind, content = b"link", os.fsencode(path.readlink())
        elif path.is_file():
            kind, content = b"%o" % (path.stat().st_mode & 0o111), path.read_bytes()
        else:
            continue
        digest.update(b"%d %s %s %d " % (len(name), name, kind, len(content)) + content)
    return digest.hexdigest()


class Record:
    """Which stages have passed for which tree."""

    def __init__(self, path: Path = STATE) -> None:
        self._path = path

    def _read(self) -> dict[str, dict[str, float]]:
        return dict(json.loads(self._path.read_text())) if self._path.exists() else {}

    def passed(self, tree: str) -> dict[str, float]:
        """Names of the stages that have passed for a tree, with the seconds that they took."""
        return self._read().get(tree, {})

    def add(self, tree: str, name: str, seconds: float) -> None:
        """Note that a stage has passed."""
        known = self._read()
        known[tree] = {**known.pop(tree, {}), name: round(seconds, 1)}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        partial = self._path.with_suffix(".partial")
        partial.write_text(json.dumps(dict(list(known.items())[-TREES:]), indent=1))
        partial.replace(self._path)


@dataclass(frozen=True)
class Row:
    """What became of a stage: passed, kept (had passed before), FAILED or left out."""

    name: str
    result: str
    seconds: float = 0.0

    @property
    def good(self) -> bool:
        """Whether the stage has passed, now or before."""
        return self.result in ("passed", "kept")


def shell(command: str) -> int:
    """Run a stage's command, output as it comes; return its exit status."""
    script = f"set -euo pipefail\n{command}"
    return subprocess.run(["bash", "-c", script], cwd=ROOT, stdin=subprocess.DEVNULL).returncode


def run(
    stages: Sequence[Stage],
    *,
    keep_going: bool = False,
    record: Record | None = None,
    again: bool = False,
    execute: Callable[[str], int] = shell,
    identify: Callable[[], str] = tree,
    say: Callable[[str], None] = print,
) -> list[Row]:
    """Run stages; return a row for each.

    With a record, a stage that has passed for the same tree is not run again (all are with
    `again`); when one that still has to run needs it, its command `again` brings back what it had
    made. A stage is recorded unless the tree has changed while it ran.
    """
    before = identify() if record else ""
    passed = record.passed(before) if record and not again else {}
    due = [stage for stage in stages if stage.name not in passed]
    needed = _needed(stages, due)
    rows: dict[str, Row] = {}
    for number, stage in enumerate(stages, start=1):
        bad = [name for name in stage.needs if name in rows and not rows[name].good]
        failed = any(not row.good for row in rows.values())
        command = stage.command
        if stage.name in passed:
            command = stage.again if stage.name in needed else ""
            if not command:
                rows[stage.name] = Row(stage.name, "kept", passed[stage.name])
                continue
        if bad or (failed and not keep_going):
            rows[stage.name] = Row(stage.name, "left out")
            continue
        say(f"--- stage {number} of {len(stages)}: {stage.name}")
        started = time.monotonic()
        good = execute(command) == 0
        seconds = time.monotonic() - started
        rows[stage.name] = Row(stage.name, "passed" if good else "FAILED", seconds)
        say(f"--- {stage.name}: {rows[stage.name].result}, {seconds:.0f} s")
        if good and record and stage.name not in passed and identify() == before:
            record.add(before, stage.name, seconds)
    return list(rows.values())


def _needed(stages: Sequence[Stage], due: Sequence[Stage]) -> set[str]:
    """The names of all stages that those which are due need."""
    by_name = {stage.name: stage for stage in stages}
    found: set[str] = set()
    left = [need for stage in due for need in stage.needs]
    while left:
        name = left.pop()
        if name not in found and name in by_name:
            found.add(name)
            left += by_name[name].needs
    return found


def report(rows: Sequence[Row], say: Callable[[str], None] = print) -> int:
    """Print the table and the closing line; return the exit status."""
    width = max((len(row.name) for row in rows), default=0)
    say(f"\n{'stage':<{width}}  result    seconds")
    for row in rows:
        say(f"{row.name:<{width}}  {row.result:<8}  {row.seconds:7.0f}")
    spent = sum(row.seconds for row in rows if row.result != "kept")
    say(f"{'sum':<{width}}  {'':<8}  {spent:7.0f}")
    good = sum(row.good for row in rows)
    say(f"{good} passed, {len(rows) - good} failed")
    return 0 if good == len(rows) else 1


def main() -> int:
    """Return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["test", "full", "changed", "only"])
    parser.add_argument("names", nargs="*", help="stages, after `only`")
    parser.add_argument("--base", default="origin/main", help="what `changed` compares with")
    parser.add_argument("--again", action="store_true", help="run what has passed, too")
    parser.add_argument("--keep-going", action="store_true", help="run what needs no failed stage")
    parser.add_argument("--list", action="store_true", help="print the stages, run none")
    wanted = parser.parse_args()
    os.environ["PYTHONUNBUFFERED"] = "1"
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    # What make was told is not for the stages' own make.
    os.environ.pop("MAKEFLAGS", None)
    try:
        table = read_table()
        if wanted.what == "only":
            stages = table.named(wanted.names)
        elif wanted.what == "changed":
            stages = select(table, changed_files(wanted.base), print)
        else:
            stages = table.tier(wanted.what)
    except (TableError, subprocess.CalledProcessError) as error:
        parser.error(str(error))
    if wanted.list:
        print(*(stage.name for stage in stages), sep="\n")
        return 0
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    record = None
    if wanted.what == "full":
        os.environ["PRIME_SPARK_FULL"] = "1"
        record = Record()
    return report(run(stages, keep_going=wanted.keep_going, record=record, again=wanted.again))


if __name__ == "__main__":
    sys.exit(main())

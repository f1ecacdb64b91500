"""The walks in docs/architecture.md lead through code that is there."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
SERVICES = ROOT / "files/python_services/src/prime_spark"
STEP = re.compile(r"^( *)(?:\d+\.|-) `([^`]+)` `([^`]+)`", re.MULTILINE)


class Step(NamedTuple):
    """What to look for in a file, and how deep in the calls it is."""

    depth: int
    path: str
    name: str

    @property
    def file(self) -> Path:
        found = SERVICES / self.path
        return found if found.exists() else ROOT / self.path

    @property
    def package(self) -> str:
        return self.path.rpartition("/")[0] or self.path


def walks() -> Iterator[list[Step]]:
    text = (ROOT / "docs/architecture.md").read_text()
    section = text.partition("## Walks through the code\n")[2].partition("\n## ")[0]
    for walk in re.split(r"^\*\*", section, flags=re.MULTILINE)[1:]:
        yield [Step(len(indent), path, name) for indent, path, name in STEP.findall(walk)]


def defined(tree: ast.AST, prefix: str = "") -> Iterator[str]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield prefix + node.name
            yield from defined(node, f"{prefix}{node.name}.")


WALKS = list(walks())


@pytest.mark.parametrize(
    "step", [step for walk in WALKS for step in walk], ids=lambda step: f"{step.path} {step.name}"
)
def test_a_step_of_a_walk_is_there(step: Step) -> None:
    text = step.file.read_text()
    if step.file.suffix == ".py":
        assert step.name in set(defined(ast.parse(text)))
    else:
        assert step.name in text


@pytest.mark.parametrize("walk", WALKS, ids=lambda walk: walk[0].path)
def test_no_walk_returns_into_a_package_that_it_called_from(walk: list[Step]) -> None:
    assert len(walk) > 5
    callers: list[Step] = []
    for step in walk:
        callers = [caller for caller in callers if caller.depth < step.depth]
        if callers and callers[-1].package != step.package:
            above = [caller.package for caller in callers]
            assert step.package not in above, f"{step.path} is called from below {above}"
        callers.append(step)

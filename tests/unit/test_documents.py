"""The documents name what there is: links, make targets, roles' variables, units."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted(
    path
    for path in [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("lab/*.md"),
        *ROOT.glob("meta/*.md"),
        *ROOT.glob("files/python_services/*.md"),
    ]
    # What was decided names what there was.
    if path.name != "decisions.md"
)
ROLES = sorted(path.name for path in (ROOT / "roles").iterdir())
# Written with a part to fill in, or cut short: `airflow_<part>_memory`, `airflow_…_memory`.
OPEN = re.compile(r"[<…*]")


@pytest.fixture(params=DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def document(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


def anchors(text: str) -> set[str]:
    """What the headings of a document can be linked by."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    kept = (re.sub(r"[^\w\- ]", "", heading.strip().lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in kept}


@cache
def known_names() -> frozenset[str]:
    """Variables of roles, their tags, and tables of the database."""
    migrations = ROOT / "files/python_services/src/prime_spark/timeseries/migrations"
    schema = "".join(path.read_text() for path in migrations.glob("*.sql"))
    known = set(re.findall(r"CREATE TABLE (?:IF NOT EXISTS )?(?:public\.)?(\w+)", schema))
    for role in ROLES:
        specs = yaml.safe_load((ROOT / "roles" / role / "meta/argument_specs.yml").read_text())
        for spec in specs["argument_specs"].values():
            known |= set(spec.get("options", {}))
        for tasks in (ROOT / "roles" / role / "tasks").glob("*.yml"):
            for tags in re.findall(r"tags: \[(.*?)\]", tasks.read_text()):
                known |= set(tags.split(", "))
    return frozenset(known)


@cache
def known_units() -> frozenset[str]:
    """Units that roles and modules write."""
    sources = "\n".join(
        path.read_text()
        for folder in ("roles", "plugins")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in {".yml", ".j2", ".py", ".service", ".timer"}
    )
    services = re.findall(r"^ +(?:python_service_name|service): ([a-z-]+)$", sources, re.MULTILINE)
    written = re.findall(r"prime-spark-[a-z-]+(?=\.(?:service|timer)|\")", sources)
    return frozenset(written) | {f"prime-spark-{name}" for name in services}


def words(text: str) -> list[str]:
    """Words in backticks or in blocks of commands; not what a run prints of a wrong inventory."""
    blocks = re.findall(r"^    (?!REFUSED)(.*)$", text, re.MULTILINE)
    code = re.findall(r"`([^`\n]+)`", text) + blocks
    return [word for piece in code for word in piece.split()]


def test_links_lead_somewhere(document: Path) -> None:
    lost = []
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = document.parent / name if name else document
        if not path.exists() or (anchor and anchor not in anchors(path.read_text())):
            lost.append(target)
    assert lost == []


def test_make_targets_exist(document: Path) -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    named = re.findall(r"(?:^ {4}|`)make ([a-z][a-z-]*)", document.read_text(), re.MULTILINE)
    assert [name for name in named if name not in targets] == []


def test_variables_of_roles_exist(document: Path) -> None:
    pattern = re.compile(rf"^(?:{'|'.join(ROLES)})_[a-z0-9_]+$")
    named = {word.strip(".,:;()\"'") for word in words(document.read_text())}
    found = {word for word in named if pattern.match(word) and not OPEN.search(word)}
    assert sorted(found - known_names()) == []


def test_units_exist(document: Path) -> None:
    called = r"(?:systemctl (?:\w+ )+|journalctl (?:-\w+ )*-\w*u )(prime-spark-[a-z-]+)"
    named = {name.rstrip("-") for name in re.findall(called, document.read_text())}
    assert sorted(named - known_units()) == []

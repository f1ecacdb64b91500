"""Tables of measured figures, written between markers in the documents."""

from __future__ import annotations

import string
from pathlib import Path

from tools.bench import results
from tools.bench.results import REPOSITORY, Result, Value
from tools.bench.sections import SECTIONS, TABLES, Table

OLDER = "**Measured on an older tree.**"


class _Seconds(float):
    """Seconds; the format ``time`` writes them as people say them."""

    def __format__(self, wanted: str) -> str:
        if wanted != "time":
            return super().__format__(wanted)
        return f"{self:.0f} s" if self < 100 else f"{self / 60:.1f} min".replace(".0 ", " ")


class _Figures(string.Formatter):
    """``{section.key:format}`` from the results; raises KeyError for what was not measured."""

    def __init__(self, measured: dict[str, Result]) -> None:
        self._measured = measured

    def get_field(self, field_name: str, args: object, kwargs: object) -> tuple[Value, str]:
        section, _, key = field_name.partition(".")
        return self._measured[section].values[key], field_name

    def format_field(self, value: Value, format_spec: str) -> str:
        if format_spec == "time":
            value = _Seconds(value)
        return format(value, format_spec)


def sections_of(table: Table) -> list[str]:
    """The sections that a table takes figures from, in the order of the rows."""
    fields = [
        field
        for row in table.rows
        for cell in row
        for _, field, _, _ in string.Formatter().parse(cell)
        if field
    ]
    return list(dict.fromkeys(field.partition(".")[0] for field in fields))


def block(table: Table, measured: dict[str, Result]) -> str:
    """The text between a table's markers."""
    figures = _Figures(measured)
    names = sections_of(table)

    def figure(cell: str) -> str:
        try:
            return figures.vformat(cell, (), {})
        except KeyError:
            return "not measured"

    lines = []
    if table.always or any(name in measured for name in names):
        rows = [[figure(cell) for cell in row] for row in table.rows]
        lines = [
            _line(list(map(figure, table.head))),
            _line(["---"] * len(table.head)),
            *map(_line, rows),
            "",
        ]
    lines += _origin(names, measured)
    if lacking := [SECTIONS[name].command for name in names if name not in measured]:
        lines.append(f"Not measured on this tree: `{'`, `'.join(lacking)}`.")
    return "\n".join(lines)


def _line(cells: list[str] | tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"


def _origin(names: list[str], measured: dict[str, Result]) -> list[str]:
    lines = []
    for name in names:
        if name not in measured:
            continue
        result, section = measured[name], SECTIONS[name]
        mark = "" if result.tree == results.tree(section.sources) else f" {OLDER}"
        lines.append(
            f"`{section.command}`, {result.date}, tree {result.tree}, {result.machine}.{mark}  "
        )
    if lines:
        lines[-1] = lines[-1].rstrip()
    return lines


def rendered(document: Path, measured: dict[str, Result]) -> str:
    """A document with its tables as the results have them; raises ValueError without markers."""
    text = document.read_text()
    for table in TABLES:
        if REPOSITORY / table.document != document:
            continue
        begin, end = f"<!-- bench:{table.name} -->\n", f"<!-- /bench:{table.name} -->"
        if text.count(begin) != 1 or text.count(end) != 1:
            raise ValueError(f"{table.document} has not one place for bench:{table.name}")
        before, _, rest = text.partition(begin)
        text = f"{before}{begin}{block(table, measured)}\n{end}{rest.partition(end)[2]}"
    return text


def documents() -> list[Path]:
    """The documents that have tables."""
    return [REPOSITORY / name for name in dict.fromkeys(table.document for table in TABLES)]


def write(check: bool) -> list[str]:
    """Render all documents; the names of those that differ. With ``check`` nothing is written."""
    measured = results.load()
    differing = []
    for document in documents():
        text = rendered(document, measured)
        if text != document.read_text():
            differing.append(str(document.relative_to(REPOSITORY)))
            if not check:
                document.write_text(text)
    return differing

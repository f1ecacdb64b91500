"""What Grafana makes of a panel's query before it asks: intervals, macros and variables.

As in Grafana 13: `rangeutil.roundInterval`, the `$__rate_interval` of the Prometheus data source,
and the macros of its PostgreSQL data source (with TimescaleDB switched on). What is not known here
is an error, so that no query is sent half expanded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise

# Seconds an interval may be, as Grafana rounds; most bounds lie halfway between two.
_STEPS = (
    *(0.001, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 20, 30, 60, 120, 300, 600, 900),
    *(1200, 1800, 3600, 7200, 10800, 21600, 43200, 86400, 604800, 2592000, 31536000),
)
_BOUNDS = {43200: 86400, 86400: 604800, 604800: 1814400, 2592000: 3628800}
_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800, "y": 31536000}
_VARIABLE = re.compile(r"\$\{(\w+)\}|\$(\w+)")


class MacroError(ValueError):
    """A macro or variable that Grafana would not expand, or not like this."""


@dataclass(frozen=True)
class Range:
    """The picked time, Unix seconds; `points` is how many a panel has room for."""

    start: float
    end: float
    points: int = 1000

    def interval(self, least: float) -> float:
        """Seconds between two points, at least `least`."""
        exact = (self.end - self.start) / self.points
        rounded = _STEPS[-1]
        for step, following in pairwise(_STEPS):
            if exact < _BOUNDS.get(step, (step + following) / 2):
                rounded = step
                break
        return max(rounded, least)


def seconds(text: str) -> float:
    """Seconds of a duration such as `5m` or `1h30m`."""
    parts = re.findall(r"(\d+(?:\.\d+)?)(ms|[smhdwy])", text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise MacroError(f"{text!r} is not a duration")
    return float(sum(float(number) * _UNITS[unit] for number, unit in parts))


def duration(value: float) -> str:
    """A duration in the largest unit that holds it exactly."""
    for unit in ("d", "h", "m", "s"):
        if value >= _UNITS[unit] and value % _UNITS[unit] == 0:
            return f"{value / _UNITS[unit]:.0f}{unit}"
    return f"{value * 1000:.0f}ms"


def promql(
    text: str, span: Range, scrape: float, variables: Mapping[str, Sequence[str]]
) -> tuple[str, float]:
    """The query as Prometheus gets it, and its step in seconds; `scrape` is the scrape interval."""
    interval = span.interval(scrape)
    known = {
        "__interval": duration(interval),
        "__interval_ms": f"{interval * 1000:.0f}",
        "__rate_interval": duration(max(interval + scrape, 4 * scrape)),
        "__range": f"{span.end - span.start:.0f}s",
        "__range_s": f"{span.end - span.start:.0f}",
        "__range_ms": f"{(span.end - span.start) * 1000:.0f}",
    }

    def values(name: str) -> str:
        if name in known:
            return known[name]
        chosen = [re.escape(value).replace("\\", "\\\\") for value in _chosen(name, variables)]
        return chosen[0] if len(chosen) == 1 else f"({'|'.join(chosen)})"

    return _replace(text, values), interval


def sql(
    text: str, span: Range, variables: Mapping[str, Sequence[str]], least: float = 0.001
) -> str:
    """The query as PostgreSQL gets it; `least` is the data source's shortest interval, seconds."""
    interval = duration(span.interval(least))

    def values(name: str) -> str:
        if name == "__interval":
            return interval
        if name == "__interval_ms":
            return f"{seconds(interval) * 1000:.0f}"
        if name.startswith("__"):
            return f"${name}"  # a macro, below
        return ",".join("'" + v.replace("'", "''") + "'" for v in _chosen(name, variables))

    return _macros(_replace(text, values), span)


def _chosen(name: str, variables: Mapping[str, Sequence[str]]) -> Sequence[str]:
    if not variables.get(name):
        raise MacroError(f"${name} is no variable of the dashboard")
    return variables[name]


def _replace(text: str, values: Callable[[str], str]) -> str:
    return _VARIABLE.sub(lambda match: values(match[1] or match[2]), text)


def _macros(text: str, span: Range) -> str:
    """Replace `$__name(arguments)` from left to right."""
    while match := re.search(r"\$(__\w+)", text):
        if text[match.end() : match.end() + 1] != "(":
            raise MacroError(f"{match[0]} has no arguments")
        end = _closing(text, match.end())
        arguments = _split(text[match.end() + 1 : end])
        text = text[: match.start()] + _macro(match[1], arguments, span) + text[end + 1 :]
    return text


def _closing(text: str, start: int) -> int:
    depth = 0
    for position in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[position], 0)
        if depth == 0:
            return position
    raise MacroError(f"no closing bracket in {text[start:]!r}")


def _split(text: str) -> list[str]:
    """Arguments at the commas that stand in no bracket."""
    parts, depth = [""], 0
    for character in text:
        depth += {"(": 1, ")": -1}.get(character, 0)
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def _macro(name: str, arguments: list[str], span: Range) -> str:
    start, end = (
        datetime.fromtimestamp(t, UTC).isoformat().replace("+00:00", "Z")
        for t in (span.start, span.end)
    )
    match name, arguments:
        case "__time", [column] if column:
            return f'{column} AS "time"'
        case "__timeFilter", [column] if column:
            return f"{column} BETWEEN '{start}' AND '{end}'"
        case "__timeFrom", [""]:
            return f"'{start}'"
        case "__timeTo", [""]:
            return f"'{end}'"
        case "__timeGroup", [column, every] if column:
            # Filling gaps (a third argument) happens after the query, so no panel here uses it.
            return f"time_bucket('{seconds(every.strip(chr(39))):.3f}s',{column})"
        case "__timeGroupAlias", [column, every] if column:
            return _macro("__timeGroup", [column, every], span) + ' AS "time"'
    raise MacroError(f"${name}({', '.join(arguments)}) is not known")

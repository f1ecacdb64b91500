"""The panels of the committed dashboards, and asking a panel's queries."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.integration.panels.grafana import Range, promql, sql

ROOT = Path(__file__).resolve().parents[3]
DASHBOARDS = ROOT / "roles/monitoring/templates/stack/config/grafana/dashboards"
LIST = Path(__file__).with_name("panels.yml")

Values = list[float]
# An expanded PromQL query, its range and step (None: an instant query) to the values it returns.
AskPrometheus = Callable[[str, Range, float | None], Values]
# An expanded SQL query to its rows.
AskDatabase = Callable[[str], list[dict[str, Any]]]


@dataclass(frozen=True)
class Panel:
    """A panel of a dashboard with its queries."""

    dashboard: str
    title: str
    targets: tuple[Mapping[str, Any], ...]

    def promql(self) -> list[str]:
        """The PromQL queries as they are written, with Grafana's variables."""
        return [target["expr"] for target in self.targets if "expr" in target]

    def ask(
        self,
        prometheus: AskPrometheus,
        database: AskDatabase,
        span: Range,
        scrape: float,
        variables: Mapping[str, Sequence[str]],
    ) -> list[Values]:
        """The finite values that each query returns; of a row of SQL, its last number."""
        found = []
        for target in self.targets:
            if target["datasource"]["type"] == "prometheus":
                text, step = promql(target["expr"], span, scrape, variables)
                values = prometheus(text, span, None if target["instant"] else step)
            else:
                rows = database(sql(target["rawSql"], span, variables))
                values = [value for row in rows if (value := _value(row)) is not None]
            found.append([value for value in values if math.isfinite(value)])
        return found


def _value(row: Mapping[str, Any]) -> float | None:
    """The last number of a row that is no time."""
    numbers = [
        float(value)
        for name, value in row.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and name != "time"
    ]
    return numbers[-1] if numbers else None


def panels() -> list[Panel]:
    """All panels with queries, dashboard by dashboard."""
    found = []
    for path in sorted(DASHBOARDS.glob("*.json")):
        board = json.loads(path.read_text())
        found += [
            Panel(board["title"], panel["title"], tuple(panel["targets"]))
            for panel in board["panels"]
            if panel["type"] != "row"
        ]
    return found


def listed() -> dict[tuple[str, str], str]:
    """(dashboard, panel) of the committed list, to `changes` or `steady`."""
    found: dict[str, dict[str, str]] = yaml.safe_load(LIST.read_text())
    return {(board, title): kind for board, rows in found.items() for title, kind in rows.items()}

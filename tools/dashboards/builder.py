"""Grafana dashboards as Python: panels flow into rows, what they share is said once.

The JSON is what file provisioning reads: the bare model with a `uid`, panels of present types, data
sources as `{type, uid}`. See https://grafana.com/docs/grafana/latest/dashboards/build-dashboards/view-dashboard-json-model/
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Json = dict[str, Any]
Kind = Literal["timeseries", "stat", "bargauge", "piechart", "barchart", "table", "state-timeline"]
# (from this value on, colour); names of colours follow Grafana's theme, dark or light.
Step = tuple[float, str]

TAG = "prime-spark"
SCHEMA_VERSION = 41
PROMETHEUS: Json = {"type": "prometheus", "uid": "prometheus"}
TIMESCALE: Json = {"type": "grafana-postgresql-datasource", "uid": "timescale"}
_COLUMNS = 24


@dataclass(frozen=True)
class Prom:
    """A PromQL query. `instant` asks for the end of the range only."""

    expr: str
    legend: str = "__auto"
    instant: bool = False

    def target(self, ref: str) -> Json:
        """The query as a panel's target."""
        return {
            "refId": ref,
            "datasource": PROMETHEUS,
            "editorMode": "code",
            "expr": self.expr,
            "legendFormat": self.legend,
            "instant": self.instant,
            "range": not self.instant,
            **({"format": "table"} if self.instant else {}),
        }


@dataclass(frozen=True)
class Sql:
    """A query of TimescaleDB. A series has the columns time, metric (its name) and value."""

    sql: str
    table: bool = False

    def target(self, ref: str) -> Json:
        """The query as a panel's target."""
        return {
            "refId": ref,
            "datasource": TIMESCALE,
            "editorMode": "code",
            "rawQuery": True,
            "rawSql": " ".join(self.sql.split()),
            "format": "table" if self.table else "time_series",
        }


Query = Prom | Sql


@dataclass(frozen=True)
class Panel:
    """One panel. `thresholds` colour it; a series' threshold is drawn as a line."""

    title: str
    queries: Sequence[Query]
    kind: Kind = "timeseries"
    unit: str = "short"
    description: str = ""
    width: int = 12
    height: int = 8
    minimum: float | None = 0
    maximum: float | None = None
    decimals: int | None = None
    thresholds: Sequence[Step] = ()
    # What values are called: {"1": ("up", "green")}.
    names: dict[str, tuple[str, str]] = field(default_factory=dict)
    stacked: bool = False
    # uid of the dashboard that says more.
    more: str = ""

    def model(self, number: int, x: int, y: int) -> Json:
        """The panel at its place."""
        source = self.queries[0].target("A")["datasource"]
        return {
            "id": number,
            "title": self.title,
            "description": self.description,
            "type": self.kind,
            "datasource": source,
            "gridPos": {"x": x, "y": y, "w": self.width, "h": self.height},
            "targets": [
                query.target(ref)
                for query, ref in zip(self.queries, string.ascii_uppercase, strict=False)
            ],
            "fieldConfig": {"defaults": self._field(), "overrides": []},
            "options": self._options(),
            "transformations": _hide_time() if self.kind == "table" else [],
            "links": [_more(self.more)] if self.more else [],
        }

    def _field(self) -> Json:
        steps: list[Json] = [{"color": "green" if self.thresholds else "text", "value": None}]
        steps += [{"color": color, "value": value} for value, color in self.thresholds]
        found: Json = {
            "unit": self.unit,
            "color": {"mode": "palette-classic" if self._many() else "thresholds"},
            "thresholds": {"mode": "absolute", "steps": steps},
            "mappings": [
                {
                    "type": "value",
                    "options": {value: {"text": text, "color": color, "index": index}},
                }
                for index, (value, (text, color)) in enumerate(self.names.items())
            ],
            "noValue": "no data",
        }
        for name, value in (
            ("min", self.minimum),
            ("max", self.maximum),
            ("decimals", self.decimals),
        ):
            if value is not None:
                found[name] = value
        if self.kind == "timeseries":
            found["custom"] = {
                "lineWidth": 1,
                "fillOpacity": 25 if self.stacked else 8,
                "showPoints": "never",
                # A gap longer than this many milliseconds is a gap, and not a line.
                "spanNulls": 300_000,
                "stacking": {"mode": "normal" if self.stacked else "none", "group": "A"},
                "thresholdsStyle": {"mode": "dashed" if self.thresholds else "off"},
            }
        elif self.kind == "state-timeline":
            found["custom"] = {"lineWidth": 0, "fillOpacity": 80}
        return found

    def _many(self) -> bool:
        return self.kind in {"timeseries", "piechart", "barchart"}

    def _options(self) -> Json:
        last = {"calcs": ["lastNotNull"], "fields": "", "values": False}
        rows = {"calcs": [], "fields": "", "values": True}
        legend = {"showLegend": True, "displayMode": "list", "placement": "bottom", "calcs": []}
        sorted_tooltip = {"mode": "multi", "sort": "desc"}
        options: dict[Kind, Json] = {
            "timeseries": {
                "legend": {**legend, "displayMode": "table", "calcs": ["lastNotNull", "max"]},
                "tooltip": sorted_tooltip,
            },
            "stat": {
                "reduceOptions": last,
                "colorMode": "value",
                "graphMode": "area",
                "textMode": "auto",
            },
            "bargauge": {
                "reduceOptions": last,
                "orientation": "horizontal",
                "displayMode": "gradient",
            },
            "piechart": {
                "reduceOptions": rows,
                "pieType": "donut",
                "legend": {**legend, "placement": "right", "values": ["value", "percent"]},
                "tooltip": sorted_tooltip,
            },
            "barchart": {
                "orientation": "auto",
                "showValue": "auto",
                "legend": legend,
                "tooltip": sorted_tooltip,
            },
            "table": {"showHeader": True, "footer": {"show": False}},
            "state-timeline": {"showValue": "never", "rowHeight": 0.9, "legend": legend},
        }
        return options[self.kind]


@dataclass(frozen=True)
class Row:
    """A heading and the panels below it."""

    title: str
    panels: Sequence[Panel]


@dataclass(frozen=True)
class Variable:
    """A choice at the top of a dashboard: the values of a label, one, several or all."""

    name: str
    query: str
    label: str

    def model(self) -> Json:
        """The variable's JSON."""
        return {
            "name": self.name,
            "label": self.label,
            "type": "query",
            "datasource": PROMETHEUS,
            "query": {"query": self.query, "refId": self.name},
            "definition": self.query,
            "refresh": 2,
            "sort": 1,
            "multi": True,
            "includeAll": True,
            "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
            "options": [],
            "hide": 0,
        }


@dataclass(frozen=True)
class Dashboard:
    """A dashboard; its file is named after its `uid`."""

    uid: str
    title: str
    description: str
    rows: Sequence[Row]
    variables: Sequence[Variable] = ()
    since: str = "now-3h"
    refresh: str = "30s"

    def model(self) -> Json:
        """The JSON that Grafana provisions."""
        panels: list[Json] = []
        y = 0
        for row in self.rows:
            panels.append(
                {
                    "id": len(panels) + 1,
                    "type": "row",
                    "title": row.title,
                    "collapsed": False,
                    "gridPos": {"x": 0, "y": y, "w": _COLUMNS, "h": 1},
                    "panels": [],
                }
            )
            y += 1
            x = tallest = 0
            for panel in row.panels:
                if x + panel.width > _COLUMNS:
                    x, y, tallest = 0, y + tallest, 0
                panels.append(panel.model(len(panels) + 1, x, y))
                x += panel.width
                tallest = max(tallest, panel.height)
            y += tallest
        return {
            "uid": self.uid,
            "title": self.title,
            "description": self.description,
            "tags": [TAG],
            "schemaVersion": SCHEMA_VERSION,
            "version": 1,
            "editable": False,
            "timezone": "browser",
            "time": {"from": self.since, "to": "now"},
            "refresh": self.refresh,
            "graphTooltip": 1,
            "fiscalYearStartMonth": 0,
            "liveNow": False,
            "weekStart": "",
            "annotations": {"list": [_alerts()]},
            "templating": {"list": [variable.model() for variable in self.variables]},
            "links": [_others()],
            "panels": panels,
        }


def _alerts() -> Json:
    """Alerts as marks in every graph."""
    return {
        "name": "Alerts",
        "datasource": PROMETHEUS,
        "enable": True,
        "hide": False,
        "iconColor": "red",
        "expr": 'ALERTS{alertstate="firing",severity="critical"}',
        "titleFormat": "{{alertname}}",
        "textFormat": "{{host}} {{service}}",
        "useValueForTime": False,
    }


def _others() -> Json:
    """A menu of all our dashboards, at the same time and with the same choices."""
    return {
        "title": "Prime Spark",
        "type": "dashboards",
        "tags": [TAG],
        "asDropdown": True,
        "includeVars": True,
        "keepTime": True,
        "targetBlank": False,
    }


def _more(uid: str) -> Json:
    return {"title": "More", "url": f"/d/{uid}?${{__url_time_range}}", "targetBlank": False}


def _hide_time() -> list[Json]:
    return [{"id": "organize", "options": {"excludeByName": {"Time": True, "__name__": True}}}]

"""The list of panels is that of the dashboards, and every query is PromQL once it is expanded."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import yaml

from tests.integration.panels.contract import labels_of, metrics_of, unknown
from tests.integration.panels.grafana import Range, promql, sql
from tests.integration.panels.queries import ROOT, listed, panels

PROMTOOL = ROOT / ".venv/bin/promtool"
SPAN = Range(1_700_000_000, 1_700_003_600)
CHOICES = {"host": ["control-pc-1", "primecore1"]}


def test_the_list_names_every_panel() -> None:
    assert list(listed()) == [(panel.dashboard, panel.title) for panel in panels()]
    assert set(listed().values()) == {"changes", "steady"}


def test_every_query_is_expanded() -> None:
    for panel in panels():
        for target in panel.targets:
            if "rawSql" in target:
                assert "$" not in sql(target["rawSql"], SPAN, CHOICES)
            else:
                assert "$" not in promql(target["expr"], SPAN, 15, CHOICES)[0]


def test_promtool_parses_every_query(tmp_path: Path) -> None:
    assert PROMTOOL.exists(), "promtool is missing: run tools/prometheus-tools"
    rules = [
        {"record": f"panel:query{number}", "expr": promql(target["expr"], SPAN, 15, CHOICES)[0]}
        for number, target in enumerate(t for p in panels() for t in p.targets if "expr" in t)
    ]
    path = tmp_path / "panels.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    done = subprocess.run(
        [PROMTOOL, "check", "rules", "--lint=none", path], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(rules)} rules found" in done.stdout


QUERY = (
    'sum by (host, le) (rate(x_seconds_bucket{endpoint!~"/a|{b}",le="1.0"}[$__rate_interval]))'
    ' / on (host) group_left (role) y_total{job="z"} > scalar(w:ratio)'
)


def test_what_a_query_names() -> None:
    assert metrics_of(QUERY) == {"x_seconds_bucket", "y_total", "w:ratio"}
    assert labels_of(QUERY) == {
        *{("x_seconds_bucket", "endpoint"), ("x_seconds_bucket", "le"), ("y_total", "job")},
        *{("", "host"), ("", "le"), ("", "role")},
    }


def test_what_no_target_exports_is_found() -> None:
    def ask(path: str, match: str = "") -> Any:
        rule = {"name": "w:ratio", "type": "recording", "query": "gone_total + x_seconds_count"}
        return {
            "rules": {"groups": [{"rules": [rule]}]},
            "label/__name__/values": ["y_total"],
            "metadata": {"x_seconds": []},
            "labels": {"": ["host", "le", "job"], "y_total": ["host"]}.get(match, []),
        }[path]

    assert unknown(ask, [QUERY]) == [
        "gone_total (rule w:ratio)",
        "label job of y_total (panel)",
        "label role of anything (panel)",
    ]

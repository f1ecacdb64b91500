"""Grafana's dashboards: the committed JSON is what tools/dashboards makes, in today's shape."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tools.dashboards.__main__ import OUTPUT, files

DATASOURCES = {("prometheus", "prometheus"), ("grafana-postgresql-datasource", "timescale")}
BOARDS: dict[str, dict[str, Any]] = {name: json.loads(text) for name, text in files().items()}
ROADMAP = {
    "System Overview": {
        "API Request Rate",
        "CPU Usage by Device",
        "Memory Usage",
        "LLM Inference Latency (p95)",
    },
    "Kafka Streams": {"Consumer Lag", "Messages/sec"},
    "Edge vs Cloud Performance": {"Request Routing", "Latency Comparison"},
}


def test_committed_files_are_what_the_builder_makes() -> None:
    found = {path.name: path.read_text() for path in OUTPUT.iterdir()}
    assert found == files(), "run `make dashboards`"


def test_grafana_opens_with_one_of_them() -> None:
    config = (OUTPUT.parent / "grafana.ini.j2").read_text()
    (home,) = re.findall(r"^default_home_dashboard_path = .*/(.*)$", config, re.MULTILINE)
    assert home in files()


def test_the_dashboards_that_were_asked_for() -> None:
    panels = {
        board["title"]: {panel["title"] for panel in board["panels"]} for board in BOARDS.values()
    }
    assert panels.keys() >= ROADMAP.keys() | {"Fleet & VPN", "TimescaleDB", "Alerts and SLOs"}
    for title, wanted in ROADMAP.items():
        assert wanted <= panels[title]


@pytest.mark.parametrize("name", sorted(BOARDS))
def test_a_file_is_the_bare_model(name: str) -> None:
    board = BOARDS[name]
    assert "dashboard" not in board
    assert f"{board['uid']}.json" == name
    assert board["title"] and board["description"] and board["schemaVersion"] >= 39
    # Provisioning gives the dashboard its number.
    assert "id" not in board


@pytest.mark.parametrize("name", sorted(BOARDS))
def test_panels_are_of_today(name: str) -> None:
    uids = {board["uid"] for board in BOARDS.values()}
    panels = BOARDS[name]["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    titles = [panel["title"] for panel in panels]
    assert len(set(titles)) == len(titles), "a title names one panel"
    for panel in panels:
        assert panel["type"] not in {"graph", "singlestat", "table-old"}
        if panel["type"] == "row":
            continue
        assert panel["fieldConfig"]["defaults"]["unit"]
        for target in panel["targets"]:
            source = target["datasource"]
            assert (source["type"], source["uid"]) in DATASOURCES
            assert source == panel["datasource"], "a panel asks one data source"
        for link in panel["links"]:
            assert re.match(r"/d/([\w-]+)", link["url"])[1] in uids  # type: ignore[index]


@pytest.mark.parametrize("name", sorted(BOARDS))
def test_sql_keeps_to_the_picked_time(name: str) -> None:
    for panel in BOARDS[name]["panels"]:
        for target in panel.get("targets", []):
            sql = target.get("rawSql", "")
            assert not sql or "$__timeFilter(time)" in sql
            assert "now()" not in sql.lower()


@pytest.mark.parametrize("name", sorted(BOARDS))
def test_panels_do_not_overlap(name: str) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in BOARDS[name]["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells


def test_colours_are_names_that_follow_the_theme() -> None:
    assert not re.search(r'"color": "(#|rgb|white|black)', "".join(files().values()))

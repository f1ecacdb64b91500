"""The dashboards fit Grafana's own types; a mistake is found, with its file and its path."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest

from tools.dashboards import __main__ as dashboards
from tools.dashboards.schema import mistakes

BOARDS: dict[str, dict[str, Any]] = {n: json.loads(t) for n, t in dashboards.files().items()}
OVERVIEW, EDGE_CLOUD = "prime-spark-overview.json", "prime-spark-edge-cloud.json"


def panel(name: str, title: str) -> str:
    """Return the path of a panel."""
    (number,) = (n for n, each in enumerate(BOARDS[name]["panels"]) if each["title"] == title)
    return f".panels[{number}]"


STAT = panel(OVERVIEW, "Targets down")
SERIES = panel(OVERVIEW, "API Request Rate")
SQL = panel(OVERVIEW, "Memory Usage")
STATES = panel(OVERVIEW, "Targets")
TABLE = panel(EDGE_CLOUD, "Models")


def opened(name: str, path: str) -> tuple[dict[str, Any], Any, str]:
    """Return a copy of a dashboard, what holds the key of the path there, and the key."""
    board = copy.deepcopy(BOARDS[name])
    *steps, key = re.findall(r"[^.\[\]]+", path)
    holder: Any = board
    for step in steps:
        holder = holder[int(step) if isinstance(holder, list) else step]
    return board, holder, key


@pytest.mark.parametrize("name", sorted(BOARDS))
def test_a_dashboard_fits_grafanas_types(name: str) -> None:
    assert mistakes(name, BOARDS[name]) == []


@pytest.mark.parametrize(
    ("name", "path", "wrong"),
    [
        (OVERVIEW, ".refresh", "refrsh"),
        (OVERVIEW, ".time.from", "form"),
        (OVERVIEW, ".annotations.list[0].titleFormat", "titelFormat"),
        (OVERVIEW, ".templating.list[0].includeAll", "includeAl"),
        (OVERVIEW, ".links[0].keepTime", "keepTimes"),
        (OVERVIEW, f"{STAT}.description", "descripton"),
        (OVERVIEW, f"{STAT}.options.colorMode", "colourMode"),
        (OVERVIEW, f"{STAT}.options.reduceOptions.calcs", "calc"),
        (OVERVIEW, f"{STAT}.links[0].targetBlank", "targetBlanc"),
        (OVERVIEW, f"{STAT}.fieldConfig.defaults.noValue", "novalue"),
        (OVERVIEW, f"{STAT}.fieldConfig.defaults.thresholds.steps[0].color", "colour"),
        (OVERVIEW, f"{SERIES}.fieldConfig.defaults.custom.lineWidth", "lineWith"),
        (OVERVIEW, f"{SERIES}.targets[0].expr", "exp"),
        (OVERVIEW, f"{SQL}.targets[0].rawSql", "rawSQL"),
        (OVERVIEW, f"{STATES}.fieldConfig.defaults.mappings[0].options.0.text", "txt"),
        (EDGE_CLOUD, f"{TABLE}.options.footer.show", "shown"),
        (EDGE_CLOUD, f"{TABLE}.transformations[0].options", "option"),
    ],
)
def test_a_mistyped_key_is_found(name: str, path: str, wrong: str) -> None:
    board, holder, key = opened(name, path)
    holder[wrong] = holder.pop(key)
    (line,) = mistakes(name, board)
    assert line.startswith(f"{name}: {path.rpartition('.')[0]}.{wrong}: ")
    assert line.endswith(" has no such key")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (f"{STAT}.type", "stats", "there is no panel 'stats'"),
        (f"{STAT}.options.graphMode", "aera", "'aera' is no BigValueGraphMode"),
        (f"{STAT}.options.reduceOptions.values", "no", "'no' is no bool or NoneType"),
        (f"{STAT}.targets[0].instant", 1, "1 is no bool or NoneType"),
        (f"{STAT}.fieldConfig.defaults.min", "0", "'0' is no float or NoneType"),
        (f"{SERIES}.options.legend.calcs", "max", "'max' is no list[str]"),
        (f"{SQL}.targets[0].rawQuery", "yes", "'yes' is no bool"),
        (f"{STAT}.repeatDirection", None, "None comes back as 'h'"),
    ],
)
def test_a_wrong_value_is_found(path: str, value: Any, message: str) -> None:
    board, holder, key = opened(OVERVIEW, path)
    holder[key] = value
    assert f"{OVERVIEW}: {path}: {message}" in mistakes(OVERVIEW, board)


@pytest.mark.parametrize(
    ("path", "value", "where"),
    [
        (f"{STAT}.datasource.type", "prometeus", f": {STAT}.targets[0]: no data source"),
        (f"{STATES}.fieldConfig.defaults.mappings[0].type", "vlaue", ": Grafana's types cannot"),
    ],
)
def test_what_cannot_be_read_is_a_mistake(path: str, value: Any, where: str) -> None:
    board, holder, key = opened(OVERVIEW, path)
    holder[key] = value
    assert mistakes(OVERVIEW, board)[0].startswith(f"{OVERVIEW}{where}")


def test_the_check_fails_on_a_mistake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "prime-spark-kafka.json"
    text = dashboards.files()[name].replace('"refresh": "30s"', '"refrsh": "30s"')
    (tmp_path / name).write_text(text)
    monkeypatch.setattr(dashboards, "OUTPUT", tmp_path)
    monkeypatch.setattr(dashboards, "files", lambda: {name: text})
    monkeypatch.setattr("sys.argv", ["dashboards", "--check"])
    assert dashboards.main() == 1
    assert capsys.readouterr().err == f"{name}: .refrsh: dashboard.Dashboard has no such key\n"

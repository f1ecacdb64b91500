"""Every alert fires when it should, and only then; with production's durations and thresholds."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from promtool import KINDS, cases, run, tool
from render import ROOT, alerts, render, rules
from render import RULES as RULE_FILES

RUNBOOKS = ROOT / "docs" / "runbooks"
LAB_PROOF = ROOT / "tests" / "system" / "alerts"
RULES = rules()
ALERTS = alerts(RULES)


def test_promtool_accepts_the_rules(tmp_path: Path) -> None:
    for name, text in RULES.items():
        (tmp_path / name).write_text(text)
    done = tool(
        "promtool", "check", "rules", "--lint=all", "--lint-fatal", *sorted(tmp_path.iterdir())
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_every_case() -> None:
    assert sorted(cases()) == sorted(ALERTS)
    for alert, kinds in cases().items():
        assert tuple(kinds)[: len(KINDS)] == KINDS, alert
        # A ratio says nothing of how much it is a ratio of.
        assert set(kinds) - set(KINDS) <= {"few"}, alert


@pytest.mark.parametrize("alert", sorted(ALERTS))
def test_alert(tmp_path: Path, alert: str) -> None:
    done = run(tmp_path, RULES, alert)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("alert", sorted(ALERTS))
def test_alert_says_what_to_do(alert: str) -> None:
    rule: dict[str, Any] = ALERTS[alert]
    assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
    assert rule["labels"]["severity"] in {"critical", "warning", "none"}
    assert rule["annotations"]["runbook_url"] == f"docs/runbooks/{alert}.md"
    page = (RUNBOOKS / f"{alert}.md").read_text()
    assert page.startswith(f"# {alert}\n")
    headings = re.findall(r"^## (.+)$", page, re.MULTILINE)
    assert headings == ["Confirm", "Fix", "Prevent"]


def test_runbooks_are_of_alerts() -> None:
    assert {path.stem for path in RUNBOOKS.glob("*.md")} == {*ALERTS, "README"}


def test_every_number_is_a_setting() -> None:
    """What the lab cannot shorten, its tests cannot wait for."""
    table = yaml.safe_load((ROOT / "roles/monitoring/vars/main.yml").read_text())
    settings = table["__monitoring_alerts"]
    assert sorted(settings) == sorted(set(ALERTS) - {"DeadMansSwitch"})
    for alert, row in settings.items():
        (name,) = [name for name, text in RULES.items() if f"alert: {alert}\n" in text]
        for setting, value in row.items():
            changed = "7m7s" if isinstance(value, str) else 0.7531
            text = render(RULE_FILES / f"{name}.j2", monitoring_alerts={alert: {setting: changed}})
            assert text != RULES[name], f"{alert}.{setting} changes nothing"


def test_the_list_of_faults_names_every_alert() -> None:
    rows = yaml.safe_load((LAB_PROOF / "faults.yml").read_text())
    assert sorted(rows) == sorted(ALERTS)
    assert all(isinstance(row, str) or row["why"] for row in rows.values())


def test_the_labs_durations_are_settings() -> None:
    changes = yaml.safe_load((LAB_PROOF / "lab.yml").read_text())
    assert rules(monitoring_alerts=changes["monitoring_alerts"]) != RULES

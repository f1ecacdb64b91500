"""Runs the table of cases through `promtool test rules`."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from render import ROOT

CASES = Path(__file__).with_name("cases")
KINDS = ("fires", "quiet", "boundary", "resolves", "missing")
# A metric's name, or a word of PromQL.
NAME = re.compile(r"[a-zA-Z_:][\w:]*")
TOOLS = ROOT / ".venv" / "bin"


def tool(name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run promtool or amtool; fails with the remedy where it is missing."""
    program = TOOLS / name
    if not program.exists():
        raise AssertionError(
            f"{name} is missing: run tools/prometheus-tools, or install the Debian packages "
            "prometheus and prometheus-alertmanager and run it again"
        )
    return subprocess.run(
        [program, *map(str, arguments)], capture_output=True, text=True, check=False
    )


def cases() -> dict[str, dict[str, dict[str, Any]]]:
    """Cases by alert and kind. Scalars stay text: 0x10 is eleven zeros here, and not sixteen."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for path in sorted(CASES.glob("*.yml")):
        found |= yaml.load(path.read_text(), Loader=yaml.BaseLoader)
    return found


def test_file(
    alert: str, kinds: dict[str, dict[str, Any]], rules: Mapping[str, str]
) -> dict[str, Any]:
    """promtool's form of the cases of one alert, to be checked by these rule files."""
    firing = f'count(ALERTS{{alertname="{alert}",alertstate="firing"}}) or vector(0)'
    groups = [group["name"] for text in rules.values() for group in yaml.safe_load(text)["groups"]]
    tests = []
    for kind, case in kinds.items():
        test: dict[str, Any] = {
            "interval": "1m",
            "input_series": [
                {"series": series, "values": values} for series, values in case["series"].items()
            ],
            "promql_expr_test": [
                {
                    "expr": firing,
                    "eval_time": time,
                    "exp_samples": [{"labels": "{}", "value": int(count)}],
                }
                for time, count in case["expect"].items()
            ],
        }
        if kind == "fires":
            test["alert_rule_test"] = [
                {
                    "alertname": alert,
                    "eval_time": list(case["expect"])[-1],
                    "exp_alerts": [
                        {
                            "exp_labels": case["labels"],
                            "exp_annotations": {
                                "summary": case["summary"],
                                "description": case["description"],
                                "runbook_url": f"docs/runbooks/{alert}.md",
                            },
                        }
                    ],
                }
            ]
        tests.append(test)
    return {
        "rule_files": list(rules),
        "evaluation_interval": "1m",
        # What is expected comes first, so that a minute is a minute; Prometheus has no such order.
        "group_eval_order": groups,
        "tests": tests,
    }


def needed(rules: Mapping[str, str], alert: str) -> dict[str, str]:
    """The rule files reduced to an alert and to what it is computed from; the rest only costs time.

    What is expected comes first, whatever its place among `rules`.
    """
    files = {name: yaml.safe_load(text) for name, text in rules.items()}
    every = [r for file in files.values() for group in file["groups"] for r in group["rules"] or []]
    names, left = {"ALERTS"}, [rule["expr"] for rule in every if rule.get("alert") == alert]
    while left:
        new = set(NAME.findall(str(left.pop()))) - names
        names |= new
        left += [rule["expr"] for rule in every if rule.get("record") in new]
    for file in files.values():
        for group in file["groups"]:
            group["rules"] = [
                rule
                for rule in group["rules"] or []
                if rule.get("alert") == alert or rule.get("record") in names
            ]
        file["groups"] = [group for group in file["groups"] if group["rules"]]
    kept = {name: file for name, file in files.items() if file["groups"]}
    return {
        name: yaml.safe_dump(kept[name], sort_keys=False)
        for name in sorted(kept, key=lambda name: name != "expected.yml")
    }


def run(directory: Path, rules: Mapping[str, str], alert: str) -> subprocess.CompletedProcess[str]:
    """Test `alert` in `directory` against the rules it depends on."""
    used = needed(rules, alert)
    for name, text in used.items():
        (directory / name).write_text(text)
    path = directory / "test.yaml"
    path.write_text(yaml.safe_dump(test_file(alert, cases()[alert], used), sort_keys=False))
    return tool("promtool", "test", "rules", path)

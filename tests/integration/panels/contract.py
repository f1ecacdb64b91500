"""What rules and panels name, held against what the live Prometheus has."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

# Of rules that wait for what the inventory does not have: `monitoring_backups` is empty.
NOT_YET = {"prime_spark:expected_backup", "prime_spark_backup_last_success_timestamp_seconds"}
FUNCTIONS = {"histogram_quantile", "predict_linear", "label_replace", "clamp_min"}

# The labels in the parentheses are its only group.
GROUPING = r"\b(?:by|on|without|ignoring|group_left|group_right)\s*\(([^)]*)\)"

# A path of Prometheus' API and its arguments to the data of the answer.
Ask = Callable[..., Any]


def _without_strings(query: str) -> str:
    return re.sub(r'"(?:[^"\\]|\\.)*"|\'[^\']*\'', '""', query)


def metrics_of(query: str) -> set[str]:
    """Names in a PromQL query that are metrics: ours and the exporters' have a prefix."""
    text = re.sub(rf"\{{[^}}]*\}}|{GROUPING}", " ", _without_strings(query))
    return set(re.findall(r"\b[a-z]\w*(?:_\w+|:\w+)+\b|\bup\b", text)) - FUNCTIONS


def labels_of(query: str) -> set[tuple[str, str]]:
    """(metric, label) of every matcher in a PromQL query; ("", label) of every grouping."""
    text = _without_strings(query)
    found = {
        (metric, label)
        for metric, matchers in re.findall(r"([a-zA-Z_:][\w:]*)\{([^}]*)\}", text)
        for label in re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers)
    }
    return found | {
        ("", label) for group in re.findall(GROUPING, text) for label in re.findall(r"\w+", group)
    }


def unknown(ask: Ask, panels: Iterable[str]) -> list[str]:
    """Metrics that no target exports, and labels they do not have: in rules and in panels' PromQL.

    A metric may be without series for the moment; its labels are unknown then, and so unchecked.
    """
    rules = [rule for group in ask("rules")["groups"] for rule in group["rules"]]
    recorded = {rule["name"] for rule in rules if rule["type"] == "recording"}
    exported = set(ask("label/__name__/values")) | set(ask("metadata")) | recorded
    labels = set(ask("labels"))
    queries = [(f"rule {rule['name']}", rule["query"]) for rule in rules]
    queries += [("panel", query) for query in panels]
    missing = set()
    for place, query in queries:
        if NOT_YET & metrics_of(query):
            continue
        for metric in metrics_of(query):
            family = re.sub(r"_(bucket|count|sum|total)$", "", metric)
            if not {metric, family} & exported:
                missing.add(f"{metric} ({place})")
        for metric, label in labels_of(query):
            known = labels if metric in {"", "ALERTS"} else set(ask("labels", match=metric))
            if known and label not in known:
                missing.add(f"label {label} of {metric or 'anything'} ({place})")
    return sorted(missing)

"""The tests notice rules that look right and are not.

Each of these stands in many a repository: it compares a counter, a rate with a ratio, a quantile
per series, one disk of many. Put in place of ours, it has to fail.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from promtool import run
from render import rules

WRONG = {
    "ServiceDown": ('up{job="prime-spark-api"} == 0', "1m"),
    "HighErrorRate": ('rate(fastapi_requests_total{status=~"5.."}[5m]) > 0.05', "5m"),
    "HighCPUUsage": ('node_cpu_seconds_total{mode="idle"} < 10', "10m"),
    "HighMemoryUsage": (
        "(node_memory_MemAvailable_bytes / node_memory_MemTotal_bytes) < 0.1",
        "5m",
    ),
    "DiskSpaceLow": (
        '(node_filesystem_avail_bytes{mountpoint="/"}'
        ' / node_filesystem_size_bytes{mountpoint="/"}) < 0.2',
        "5m",
    ),
    "KafkaConsumerLag": ("kafka_consumergroup_lag > 1000", "5m"),
    "HighAPILatency": (
        "histogram_quantile(0.95, rate(fastapi_request_duration_seconds_bucket[5m])) > 1",
        "5m",
    ),
}


def replaced(alert: str, expression: str, duration: str) -> dict[str, str]:
    """Our rules with one expression and `for` exchanged; labels and annotations stay."""
    files = {}
    for name, text in rules().items():
        document = yaml.safe_load(text)
        for group in document["groups"]:
            for rule in group["rules"] or []:
                if rule.get("alert") == alert:
                    rule |= {"expr": expression, "for": duration}
        files[name] = yaml.safe_dump(document, sort_keys=False)
    return files


@pytest.mark.parametrize("alert", WRONG)
def test_a_wrong_rule_fails(tmp_path: Path, alert: str) -> None:
    done = run(tmp_path, replaced(alert, *WRONG[alert]), alert)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "FAILED:" in done.stdout + done.stderr

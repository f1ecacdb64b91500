"""What is scraped follows from the inventory, and passwords hash the same way every time."""

from __future__ import annotations

import json
from typing import Any

import bcrypt
import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.prime_spark.fleet.plugins.filter import monitoring_targets as filters

GROUPS = {
    "node_exporter": ["b", "a"],
    "telemetry": ["a"],
    "kafka": ["a"],
    "exporters": ["a"],
    "redis": ["b"],
}
HOSTVARS: dict[str, dict[str, Any]] = {
    "a": {"wireguard_address": "10.0.0.1", "telemetry_port": 9999},
    "b": {"wireguard_address": "10.0.0.2"},
}


def test_targets_follow_groups_and_ports() -> None:
    assert filters.monitoring_targets(GROUPS, HOSTVARS) == [
        {"job": "prime_spark", "host": "a", "address": "10.0.0.1:9999", "service": "telemetry"},
        {"job": "node", "host": "a", "address": "10.0.0.1:9100"},
        {"job": "node", "host": "b", "address": "10.0.0.2:9100"},
        {"job": "kafka", "host": "a", "address": "10.0.0.1:9308"},
        # Redis of b has no exporter.
    ]


def test_what_answers_more_than_metrics_is_for_prometheus_only() -> None:
    groups = {**GROUPS, "exporters": ["a", "b"], "timescale": ["b"]}
    found = filters.monitoring_targets(groups, HOSTVARS, only_prometheus=True)
    assert {target["job"] for target in found} == {"node", "postgres", "redis"}
    everything = filters.monitoring_targets(groups, HOSTVARS)
    assert [target for target in everything if target in found] == found


@pytest.mark.parametrize("state", ["kafka_state", "exporters_state"])
def test_what_is_absent_is_not_scraped(state: str) -> None:
    hostvars = {**HOSTVARS, "a": {**HOSTVARS["a"], state: "absent"}}
    assert "kafka" not in {t["job"] for t in filters.monitoring_targets(GROUPS, hostvars)}


def test_a_host_without_an_address_is_named() -> None:
    with pytest.raises(AnsibleFilterError, match="b has no wireguard_address"):
        filters.monitoring_targets(GROUPS, {**HOSTVARS, "b": {}})


def test_one_file_a_job_with_stable_labels() -> None:
    files = filters.monitoring_target_files(filters.monitoring_targets(GROUPS, HOSTVARS), "/d")
    assert [file["path"] for file in files] == [
        "/d/kafka.json",
        "/d/node.json",
        "/d/prime_spark.json",
    ]
    (entry,) = json.loads(files[2]["content"])
    assert entry == {
        "targets": ["10.0.0.1:9999"],
        "labels": {"host": "a", "service": "telemetry"},
    }


@pytest.mark.parametrize("password", ["x" * 32, "odd: {word} %", "ü" * 30])
def test_a_hash_is_the_password_s_and_the_same_every_time(password: str) -> None:
    found = filters.bcrypt_hash(password, "admin")
    assert bcrypt.checkpw(password.encode(), found.encode())
    assert found == filters.bcrypt_hash(password, "admin")
    assert found != filters.bcrypt_hash(password, "other")
    assert not bcrypt.checkpw(b"other", found.encode())


def test_memory_for_go() -> None:
    assert filters.memory_share("768m", 0.85) == "652MiB"
    assert filters.memory_share("1g", 0.5) == "512MiB"

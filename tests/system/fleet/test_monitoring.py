"""S11: who is scraped, how it is labelled, what is loaded, and that the heartbeat arrives."""

from __future__ import annotations

import json
import urllib.parse
from functools import partial
from typing import Any

import pytest
import yaml
from testinfra.host import Host

from tests.system.fleet import fleet
from tests.system.fleet.fleet import (
    ROOT,
    connect,
    members,
    on,
    probe,
    setting,
    shell,
    variables,
    vpn_address,
)
from tests.system.fleet.test_tags import play

CONFIG = "/opt/prime-spark/stack/monitoring/config"
# A few scrapes of the lab, at its shortened interval.
SCRAPES = 60


def monitor() -> Host:
    (name,) = members("monitoring")
    return connect(name)


def ask(service: str, path: str) -> Any:
    answer = probe(monitor(), "scrape", service, path)
    assert answer["status"] == 200, answer
    return json.loads(answer["body"])


def query(expression: str) -> list[dict[str, Any]]:
    """The result of an instant query."""
    found = ask("prometheus", "/api/v1/query?" + urllib.parse.urlencode({"query": expression}))
    assert found["status"] == "success"
    return list(found["data"]["result"])


def expected() -> dict[tuple[str, str], str]:
    """(job, instance) to host, of every target that the groups promise."""
    ports = {
        ("node", "node_exporter"): ("node_exporter", "node_exporter_port"),
        ("prime_spark", "telemetry"): ("telemetry", "telemetry_port"),
        ("prime_spark", "ingest"): ("ingest", "ingest_port"),
        ("prime_spark", "api"): ("api", "api_port"),
        ("prime_spark", "spark_agent"): ("spark_agent", "spark_agent_port"),
        ("prime_spark", "dispatcher"): ("dispatcher", "dispatcher_port"),
        ("prime_spark", "deadman"): ("deadman", "deadman_port"),
        ("prime_spark", "hook"): ("hook", "hook_port"),
        ("kafka", "kafka"): ("exporters", "exporters_kafka_port"),
        ("postgres", "timescale"): ("exporters", "exporters_postgres_port"),
        ("redis", "redis"): ("exporters", "exporters_redis_port"),
        ("prometheus", "monitoring"): ("monitoring", "monitoring_prometheus_port"),
        ("alertmanager", "monitoring"): ("monitoring", "monitoring_alertmanager_port"),
    }
    return {
        (job, f"{vpn_address(name)}:{setting(name, role, port)}"): name
        for (job, group), (role, port) in ports.items()
        for name in members(group)
    }


def test_every_target_of_the_inventory_is_up_and_no_other_is_there() -> None:
    wanted = expected()

    def states() -> dict[tuple[str, str], str]:
        found = ask("prometheus", "/api/v1/targets?state=active")["data"]["activeTargets"]
        return {
            (t["labels"]["job"], t["labels"]["instance"]): f"{t['health']} {t['lastError']}".strip()
            for t in found
        }

    seen = fleet.wait_until(
        "every target up", states, SCRAPES, lambda s: set(s.values()) == {"up"}, interval=2
    )
    assert set(seen) == set(wanted)


def test_targets_carry_their_host_and_service() -> None:
    found = ask("prometheus", "/api/v1/targets?state=active")["data"]["activeTargets"]
    for target in found:
        labels = target["labels"]
        assert labels["host"] == expected()[labels["job"], labels["instance"]]
        assert ("service" in labels) == (labels["job"] == "prime_spark")


@on("managed")
def test_a_host_tells_of_its_peers_containers_units_and_nas(host: Host) -> None:
    name = fleet.name_of(host)

    def series(metric: str) -> list[dict[str, Any]]:
        return query(f'{metric}{{host="{name}"}}')

    peers = fleet.wait_until(
        "VPN metrics", lambda: series("prime_spark_wireguard_latest_handshake_seconds"), SCRAPES
    )
    known = json.loads(shell(host, "cat /run/prime-spark/vpn.json"))["peers"]
    assert {p["metric"]["peer"] for p in peers} == {p["name"] for p in known}
    if name in members("docker"):
        running = fleet.wait_until(
            "container metrics", lambda: series("prime_spark_container_running"), SCRAPES
        )
        listed = set(shell(host, "docker ps --all --format '{{.Names}}'").split())
        assert {c["metric"]["container"] for c in running} == listed
        assert {c["value"][1] for c in running} == {"1"}
    else:
        assert series("prime_spark_container_running") == []
    for metric in ("prime_spark_nas_mounted", "prime_spark_nas_responding"):
        values = [s["value"][1] for s in series(metric)]
        assert values == (["1"] if name in members("nas") else []), metric
    active = query(f'node_systemd_unit_state{{host="{name}",state="active"}} == 1')
    assert "prime-spark-telemetry.service" in {u["metric"]["name"] for u in active}


def test_servers_are_seen_by_their_exporters() -> None:
    def values(expression: str) -> set[str]:
        return {s["value"][1] for s in query(expression)}

    def labels(expression: str, label: str) -> set[str]:
        return {s["metric"][label] for s in query(expression)}

    # One that another test restarted a moment ago is seen at its exporter's next look.
    for expression in (
        'pg_up{job="postgres"}',
        'redis_up{job="redis"}',
        'kafka_brokers{job="kafka"}',
    ):
        fleet.wait_until(
            expression, partial(values, expression), SCRAPES, lambda seen: seen == {"1"}
        )
    fleet.wait_until(
        "the lag of ingest",
        lambda: labels("kafka_consumergroup_lag_sum", "consumergroup"),
        SCRAPES,
        lambda groups: "prime-spark-ingest" in groups,
    )
    fleet.wait_until(
        "the newest sample of every device",
        lambda: labels("prime_spark_device_newest_sample_timestamp_seconds", "device_id"),
        SCRAPES,
        lambda devices: devices == set(members("telemetry")),
    )


def test_exporters_may_only_look() -> None:
    """What their users can do beyond that would be a way in."""
    rows = fleet.query(
        "SELECT table_name FROM information_schema.role_table_grants"
        " WHERE grantee = 'prime_spark_exporter' AND privilege_type <> 'SELECT'"
    )
    assert rows == []
    roles = fleet.query(
        "SELECT r.rolname FROM pg_auth_members a JOIN pg_roles r ON r.oid = a.roleid"
        " JOIN pg_roles m ON m.oid = a.member WHERE m.rolname = 'prime_spark_exporter'"
    )
    assert {row["rolname"] for row in roles} == {"pg_monitor", "prime_spark_reader"}


def test_the_rules_of_the_repository_are_loaded() -> None:
    loaded = ask("prometheus", "/api/v1/rules")["data"]["groups"]
    names = {group["file"].rpartition("/")[2] for group in loaded}
    source = ROOT / "roles/monitoring/templates/stack/config/prometheus/rules"
    assert names == {path.name.removesuffix(".j2") for path in source.iterdir()}
    unhealthy = {
        r["name"]: r["lastError"] for g in loaded for r in g["rules"] if r.get("lastError")
    }
    assert unhealthy == {}


@pytest.mark.parametrize("service", ["prometheus", "alertmanager"])
def test_nobody_gets_in_without_a_password(service: str) -> None:
    for path in ("/api/v2/alerts", "/api/v1/query?query=up", "/metrics", "/-/reload"):
        assert probe(monitor(), "scrape", service, path)["anonymous"] == 401, path


@on("managed")
def test_the_packages_own_exporter_never_runs(host: Host) -> None:
    assert shell(host, "systemctl is-enabled prometheus-node-exporter || true") == "masked"
    name = fleet.name_of(host)
    ours = setting(name, "node_exporter", "node_exporter_port")
    for port, listening in ((9100, []), (ours, [f"{vpn_address(name)}:{ours}"])):
        look = f"ss -H -l -t -n 'sport = :{port}' | awk '{{print $4}}'"
        assert shell(host, look).split() == listening


def test_the_heartbeat_arrives_at_the_dead_man_receiver() -> None:
    def beats() -> float:
        return float(
            query('prime_spark_deadman_heartbeats_total{service="deadman"}')[0]["value"][1]
        )

    first = fleet.wait_until("a heartbeat", beats, 2 * SCRAPES)
    fleet.wait_until("another heartbeat", beats, 2 * SCRAPES, lambda b: b > first)
    (name,) = members("deadman")
    url = f"http://{vpn_address(name)}:{setting(name, 'deadman', 'deadman_port')}/health"
    assert probe(connect(name), "http_get", url)[url]["status"] == 200


def test_the_dead_man_lives_elsewhere() -> None:
    assert not set(members("deadman")) & set(members("monitoring"))


@on("monitoring")
def test_grafana_is_prepared_without_its_server(host: Host) -> None:
    assert "grafana" not in variables(fleet.name_of(host))["images"]
    found = shell(host, 'cat "$1"', f"{CONFIG}/grafana/provisioning/datasources/prime-spark.yml")
    sources = {s["uid"]: s for s in yaml.safe_load(found)["datasources"]}
    assert set(sources) == {"prometheus", "timescale"}
    assert sources["timescale"]["user"] == "prime_spark_reader"
    for source in sources.values():
        for value in source["secureJsonData"].values():
            path = value.removeprefix("$__file{").removesuffix("}")
            below = path.replace("/etc/grafana", f"{CONFIG}/grafana")
            assert shell(host, 'stat -c "%a %u" "$1"', below) == "400 71005"
    source = ROOT / "roles/monitoring/templates/stack/config/grafana/dashboards"
    there = shell(host, 'ls "$1"', f"{CONFIG}/grafana/dashboards").split()
    assert there == sorted(path.name for path in source.iterdir())


def started() -> dict[str, str]:
    """Service to the time its container was started."""
    script = (
        "docker ps --quiet --filter label=com.docker.compose.project=monitoring | xargs "
        "docker inspect --format '{{.Name}} {{.State.StartedAt}}'"
    )
    return dict(line.split() for line in shell(monitor(), script).splitlines())


@pytest.mark.tags
def test_a_target_that_left_leaves_prometheus_without_a_restart() -> None:
    (name,) = members("deadman")
    target = ("prime_spark", f"{vpn_address(name)}:{setting(name, 'deadman', 'deadman_port')}")
    before = started()

    def targets() -> set[tuple[str, str]]:
        found = ask("prometheus", "/api/v1/targets?state=active")["data"]["activeTargets"]
        return {(t["labels"]["job"], t["labels"]["instance"]) for t in found}

    assert target in targets()
    try:
        # As if the inventory said so; the run touches nothing but the monitoring.
        play("--tags", "monitoring", "-e", "deadman_state=absent")
        fleet.wait_until("the target has left", targets, SCRAPES, lambda t: target not in t)
    finally:
        play("--tags", "monitoring")
    fleet.wait_until("the target is back", targets, SCRAPES, lambda t: target in t)
    assert started() == before


@pytest.mark.tags
def test_a_monitoring_that_stops_is_noticed_elsewhere_and_forgiven() -> None:
    (name,) = members("deadman")
    host = connect(name)
    url = f"http://{vpn_address(name)}:{setting(name, 'deadman', 'deadman_port')}/health"

    def status() -> int:
        return int(probe(host, "http_get", url)[url]["status"])

    # Alertmanager holds the alert for as long as Prometheus told it to.
    timeout = variables(name)["deadman_timeout_seconds"] + SCRAPES
    fleet.wait_until("a heartbeat", status, SCRAPES, lambda s: s == 200)
    shell(monitor(), "docker stop monitoring-prometheus-1")
    try:
        fleet.wait_until("the alarm", status, timeout, lambda s: s == 503, interval=1)
    finally:
        shell(monitor(), "docker start monitoring-prometheus-1")
    fleet.wait_until("the all-clear", status, SCRAPES, lambda s: s == 200, interval=1)

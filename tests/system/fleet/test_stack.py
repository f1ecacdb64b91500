"""S12: the compose projects, where they listen, and whom they let in."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterator
from typing import Any

import pytest
from testinfra.host import Host

from tests.system.fleet import fleet
from tests.system.fleet.fleet import (
    connect,
    members,
    name_of,
    on,
    other_address,
    probe,
    raw_setting,
    service_python,
    setting,
    shell,
    variables,
    vpn_address,
)

PROJECTS = ("kafka", "redis", "timescale", "airflow")
# The role's variable for the port that clients use.
PORTS = {project: f"{project}_port" for project in PROJECTS}
SSH_PORT = 22


def placed(*projects: str) -> list[Any]:
    """Every project on every host of its group."""
    return [
        pytest.param(name, project, id=f"{project}-{name}")
        for project in projects
        for name in members(project)
    ]


each_project = pytest.mark.parametrize(("host", "project"), placed(*PROJECTS), indirect=["host"])


def containers(host: Host, project: str) -> list[dict[str, Any]]:
    script = (
        'docker ps --all --quiet --filter "label=com.docker.compose.project=$1"'
        " | xargs --no-run-if-empty docker inspect"
    )
    found = list(json.loads(shell(host, script, project) or "[]"))
    assert found, f"{name_of(host)} has no container of {project}"
    return found


@each_project
def test_containers_run_and_are_healthy(host: Host, project: str) -> None:
    def states() -> list[tuple[str, str]]:
        return [
            (c["State"]["Status"], c["State"].get("Health", {}).get("Status", "no check"))
            for c in containers(host, project)
        ]

    fleet.wait_until(
        f"{project} on {name_of(host)}", states, 60, lambda s: set(s) == {("running", "healthy")}
    )


@each_project
def test_the_image_is_the_one_that_the_digest_in_the_inventory_names(
    host: Host, project: str
) -> None:
    reference = variables(name_of(host))["images"][project]
    repository, _, digest = reference.partition("@")
    assert digest.startswith("sha256:")
    for container in containers(host, project):
        assert container["Config"]["Image"] == reference
        image = json.loads(shell(host, 'docker image inspect "$1"', container["Image"]))[0]
        assert f"{repository.rpartition(':')[0]}@{digest}" in image["RepoDigests"]


@pytest.mark.parametrize(
    ("host", "project"), placed(*PROJECTS, "monitoring", "exporters"), indirect=["host"]
)
def test_containers_have_the_baseline(host: Host, project: str) -> None:
    """Docker forgets a limit that the host's cgroups cannot enforce; compose asks for it always."""
    enforces = json.loads(
        shell(host, "docker info --format '[{{.MemoryLimit}}, {{.PidsLimit}}, {{.CPUCfsQuota}}]'")
    )
    log = {
        option: str(setting(name_of(host), "docker", f"docker_log_{option.replace('-', '_')}"))
        for option in ("max-size", "max-file")
    }
    directory = f"/opt/prime-spark/stack/{project}"
    asked = json.loads(shell(host, 'cd "$1" && docker compose config --format json', directory))
    for container in containers(host, project):
        service = asked["services"][container["Config"]["Labels"]["com.docker.compose.service"]]
        settings = container["HostConfig"]
        assert int(service["mem_limit"]) > 0
        assert service["pids_limit"] > 0
        limits = [settings["Memory"], settings["PidsLimit"] or 0]
        wanted = [int(service["mem_limit"]), service["pids_limit"]]
        assert limits == [w if e else 0 for w, e in zip(wanted, enforces[:2], strict=True)]
        assert settings["RestartPolicy"]["Name"] == "unless-stopped"
        assert settings["LogConfig"] == {"Type": "json-file", "Config": log}
        assert container["Config"]["Healthcheck"]["Test"]
        assert not settings["Privileged"]
        assert settings["SecurityOpt"] == ["no-new-privileges:true"]
        assert settings["NetworkMode"] != "host"
        assert (settings["CapDrop"], settings["CapAdd"]) == (["ALL"], None)
        assert settings["ReadonlyRootfs"]
        assert int(container["Config"]["User"].partition(":")[0]) > 0


@on("managed")
def test_nothing_but_ssh_listens_outside_vpn_and_loopback(host: Host) -> None:
    own = vpn_address(name_of(host))
    listening = shell(host, "ss -H -l -t -n | awk '{print $4}'").split()
    # The collector: so the list is no empty one.
    assert f"{own}:{setting(name_of(host), 'telemetry', 'telemetry_port')}" in listening
    outside = set()
    for entry in listening:
        address, _, port = entry.rpartition(":")
        ip = ipaddress.ip_address(address.strip("[]").partition("%")[0].replace("*", "0.0.0.0"))
        if not ip.is_loopback and str(ip) != own and int(port) != SSH_PORT:
            outside.add(entry)
    assert outside == set()


@each_project
def test_ports_are_open_on_the_vpn_and_closed_elsewhere(host: Host, project: str) -> None:
    """Seen from another host that has a way to both addresses."""
    name, port = name_of(host), setting(name_of(host), project, PORTS[project])
    inside, outside = f"{vpn_address(name)}:{port}", f"{other_address(name)}:{port}"
    segment = "edge" if name in members("edge") else "cloud"
    neighbour = next(n for n in members(segment) if n != name)
    seen = probe(connect(neighbour), "tcp_connect", inside, outside)
    assert seen[inside] == "open"
    assert seen[outside] != "open"


def ways_around_the_vpn() -> Iterator[tuple[str, str]]:
    """A neighbour of each VPN host on its own segment; one that is no VPN peer where there is."""
    segments = [[*members("edge"), *members("storage")], members("cloud")]
    for segment in segments:
        for target in set(segment) & set(members("wireguard")):
            others = sorted(set(segment) - {target}, key=lambda n: n in members("wireguard"))
            yield target, others[0]


@pytest.mark.parametrize(("target", "neighbour"), sorted(ways_around_the_vpn()))
def test_a_neighbour_cannot_reach_a_vpn_address_around_the_vpn(target: str, neighbour: str) -> None:
    """Linux answers for an address on every interface, and Docker forwards from everywhere."""
    address, gateway = vpn_address(target), other_address(target)
    ports = [setting(target, p, PORTS[p]) for p in PROJECTS if target in members(p)]
    ports += [SSH_PORT, setting(target, "telemetry", "telemetry_port")]
    targets = [f"{address}:{port}" for port in ports]
    host = connect(neighbour)
    shell(host, 'ip route add "$1/32" via "$2"', address, gateway)
    try:
        assert f"via {gateway}" in shell(host, 'ip route get "$1"', address)
        seen = probe(host, "tcp_connect", *targets)
    finally:
        shell(host, 'ip route delete "$1/32" via "$2"', address, gateway)
    assert {target: answer for target, answer in seen.items() if answer != "timed out"} == {}


# --- Kafka ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kafka() -> dict[str, Any]:
    (name,) = members("kafka")
    return dict(probe(connect(name), "kafka_state", python=service_python("kafka-admin")))


def test_kafka_has_the_topics_of_the_inventory(kafka: dict[str, Any]) -> None:
    (name,) = members("kafka")
    wanted = setting(name, "kafka", "kafka_topics")
    assert {"edge.telemetry", "edge.ai.inference", "analytics.events", "prime-spark.dlq"} <= set(
        wanted
    )
    assert set(kafka["topics"]) >= set(wanted)
    for topic, options in wanted.items():
        found = kafka["topics"][topic]
        assert found["partitions"] == options["partitions"], topic
        assert {key: found["configs"][key] for key in options["configs"]} == options["configs"]
        assert "retention.ms" in options["configs"], topic


def test_kafka_has_the_users_and_rights_of_the_inventory_and_no_other(
    kafka: dict[str, Any],
) -> None:
    (name,) = members("kafka")
    wanted = {
        (a["principal"], "ALLOW", a["resource_type"], "LITERAL", a["name"], operation, "*")
        for a in setting(name, "kafka", "kafka_acls")
        for operation in a["operations"]
    }
    assert {tuple(right) for right in kafka["rights"]} == wanted
    users = {"admin", *raw_setting(name, "kafka", "kafka_users")}
    assert set(kafka["users"]) == users


def test_kafka_lets_in_who_has_the_password_and_denies_what_is_not_listed() -> None:
    (name,) = members("kafka")
    server = f"{vpn_address(name)}:{setting(name, 'kafka', 'kafka_port')}"
    seen = probe(connect(name), "kafka_access", server, python=service_python("kafka-admin"))
    users = ["admin", *sorted(raw_setting(name, "kafka", "kafka_users"))]
    assert {user for user in seen if user.endswith("right password")} == {
        f"{user}, right password" for user in users
    }, "the probe tries every user"
    assert seen == {
        "anonymous": "refused",
        "unknown user": "refused",
        **{f"{user}, right password": "allowed" for user in users},
        **{f"{user}, wrong password": "refused" for user in users},
        "ingest reads edge.telemetry": "allowed",
        "ingest reads prime-spark.dlq": "allowed",
        "ingest reads in another group": "GroupAuthorizationFailedError",
        **dict.fromkeys(
            [
                *("telemetry writes analytics.events", "telemetry writes prime-spark.dlq"),
                *("telemetry reads edge.telemetry", "telemetry creates a topic"),
                *("ingest writes edge.telemetry", "ingest creates a topic"),
                *("api writes edge.telemetry", "api writes prime-spark.dlq"),
                *("api reads analytics.events", "api creates a topic"),
                *("agent writes analytics.events", "agent writes edge.telemetry"),
                *("agent reads edge.ai.inference", "agent creates a topic"),
                *("exporter reads analytics.events", "exporter creates a topic"),
            ],
            "TopicAuthorizationFailedError",
        ),
        # It may see that the topic is there, and then may not be a producer at all.
        "exporter writes analytics.events": "ClusterAuthorizationFailedError",
    }


# --- Redis ----------------------------------------------------------------------------------


USERS_OF_REDIS = ("api", "dispatcher", "spark_agent", "airflow")


def test_redis_lets_a_stranger_ping_and_users_do_what_they_need() -> None:
    (name,) = members("redis")
    server = f"{vpn_address(name)}:{setting(name, 'redis', 'redis_port')}"
    users = set(raw_setting(name, "redis", "redis_users"))
    tried: set[str] = set()
    # Each host tries the users whose passwords it has.
    holders = {name, *(host for service in USERS_OF_REDIS for host in members(service))}
    for place in sorted(holders):
        seen = probe(connect(place), "redis_access", server, python=service_python("telemetry"))
        here = {user for user in users if f"{user}, right password" in seen}
        tried |= here
        allowed = {attempt for attempt, answer in seen.items() if answer == "allowed"}
        assert allowed == {"default pings", *(f"{user}, right password" for user in here)}
        # Refused by the rules, not by a server that is out of order.
        refused = {a: answer.partition(":")[0] for a, answer in seen.items() if a not in allowed}
        wrong = {refused.pop(f"{user}, wrong password") for user in here}
        assert wrong == {"AuthenticationError"}
        assert set(refused.values()) == {"NoPermissionError"}
    assert tried == users


# --- TimescaleDB ----------------------------------------------------------------------------


def test_the_tables_are_hypertables() -> None:
    rows = fleet.query("SELECT hypertable_name FROM timescaledb_information.hypertables")
    assert {row["hypertable_name"] for row in rows} == {
        *("device_metrics", "ai_inference_results", "api_events"),
        *("device_metrics_5m", "device_metrics_1h"),
    }


def test_passwords_are_stored_as_scram_verifiers() -> None:
    rows = fleet.query("SELECT rolname, rolsuper, rolpassword FROM pg_authid WHERE rolcanlogin")
    users = {row["rolname"]: row for row in rows}
    assert {name for name, row in users.items() if row["rolsuper"]} == {"postgres"}
    assert set(users) == {
        *("postgres", "prime_spark_owner", "prime_spark_api", "prime_spark_ingest"),
        *("prime_spark_airflow", "prime_spark_exporter"),
        *("prime_spark_pipeline", "prime_spark_reader"),
    }
    for name, row in users.items():
        assert row["rolpassword"].startswith("SCRAM-SHA-256$"), name
    (setting_row,) = fleet.query("SELECT current_setting('password_encryption') AS method")
    assert setting_row["method"] == "scram-sha-256"


# What each user may do besides logging in, of what the probe tries.
DATABASE_RIGHTS = {
    "prime_spark_ingest": {"inserts", "reads"},
    "prime_spark_pipeline": {"inserts", "reads"},
    "prime_spark_api": {"reads the memory", "changes the memory"},
    "prime_spark_reader": {"reads"},
    "prime_spark_exporter": {"reads"},
}


def test_postgresql_lets_in_its_users_and_never_the_superuser() -> None:
    (name,) = members("timescale")
    arguments = [vpn_address(name), str(setting(name, "timescale", "timescale_port"))]
    no_entry, wrong_password, no_right = "28000", "28P01", "42501"
    seen: dict[str, str] = {}
    # Each host tries the users whose passwords it has.
    for service in ("ingest", "api"):
        for place in members(service):
            python = service_python(service)
            seen |= probe(connect(place), "postgres_access", *arguments, python=python)
    users = {"prime_spark_owner", *raw_setting(name, "timescale", "timescale_users")}
    assert {f"{user}, right password" for user in users} < set(seen), "every user is tried"
    for attempt in ("right password", "wrong password", "no password", "another database"):
        assert seen.pop(f"postgres, {attempt}") == no_entry
    for user in users:
        assert seen.pop(f"{user}, right password") == "allowed"
        assert seen.pop(f"{user}, wrong password") == wrong_password
        assert seen.pop(f"{user}, no password") == wrong_password
        # Of databases that somebody enters, PostgreSQL says it only after the log-in.
        elsewhere = no_right if user == "prime_spark_airflow" else no_entry
        assert seen.pop(f"{user}, another database") == elsewhere
    allowed = {f"{user} {right}" for user, rights in DATABASE_RIGHTS.items() for right in rights}
    assert seen == {a: "allowed" if a in allowed else no_right for a in seen}
    assert allowed < set(seen)

"""A hostile neighbour in the VPN, at the port of every server that it reaches.

The ports of our own services have test_hostile_http.py, where they are developed.
"""

from __future__ import annotations

import json
import runpy
import statistics
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.system.fleet import fleet
from tests.system.fleet.fleet import (
    PROBES,
    ROOT,
    SYSTEM_PYTHON,
    connect,
    members,
    probe,
    service_python,
    setting,
    shell,
    vpn_address,
)

HOSTILE = ROOT / "files" / "python_services" / "tests" / "integration" / "hostile.py"
SSH_PORT = 22
MIB = 1024 * 1024
# How long an attack lasts once it is complete, at least.
SECONDS = 5
# Of a good request meanwhile, with the attacker on the same two cores. How long one usually takes
# is printed; no test asserts it.
PATIENCE = 60
# Of a program on a host, whatever happens to the test.
PROGRAM_SECONDS = 400
HTTP = (
    "long_header",
    "many_headers",
    "declared_body",
    "chunked_body",
    "noise",
    "slow_head",
    "idle",
)
# Attacks that a server need not end soon.
SLOW = runpy.run_path(str(HOSTILE))["SLOW"]


class Server(NamedTuple):
    """Who serves it, how it is attacked, and what is asked meanwhile by whom."""

    group: str
    port: str
    cgroup: str  # a container as project/service, or a unit
    attacks: tuple[str, ...]
    good: str
    asker: str  # a group
    path: str = ""
    posts: str = ""


KAFKA = ("noise", "frame", "held_frame", "kafka_login", "idle")
REDIS = ("noise", "redis_bulk", "redis_unread", "idle")
POSTGRES = ("noise", "frame", "postgres_login", "idle")
PROMETHEUS, ALERTMANAGER = "monitoring_prometheus_port", "monitoring_alertmanager_port"
SERVERS = (
    Server("kafka", "kafka_port", "kafka/kafka", KAFKA, "kafka", "kafka"),
    Server("redis", "redis_port", "redis/redis", REDIS, "redis", "timescale"),
    Server("timescale", "timescale_port", "timescale/timescale", POSTGRES, "postgres", "api"),
    Server(
        *("airflow", "airflow_port", "airflow/api-server", HTTP, "http", "api"),
        *("/api/v2/monitor/health", "/auth/token"),
    ),
    Server(
        *("monitoring", PROMETHEUS, "monitoring/prometheus", HTTP, "http", "monitoring"),
        *("/api/v1/query?query=up", "/api/v1/query"),
    ),
    Server(
        *("monitoring", ALERTMANAGER, "monitoring/alertmanager", ("held_head", *HTTP)),
        *("http", "monitoring"),
        *("/api/v2/alerts", "/api/v2/alerts"),
    ),
    Server(
        *("llm_server", "llm_server_port", "prime-spark-llm-server.service", HTTP, "http", "api"),
        *("/health", "/v1/chat/completions"),
    ),
)
SERVICES = (
    *(("telemetry", "telemetry_port"), ("ingest", "ingest_port"), ("api", "api_port")),
    *(("spark_agent", "spark_agent_port"), ("dispatcher", "dispatcher_port")),
    *(("deadman", "deadman_port"), ("exporters", "exporters_kafka_port")),
    *(("hook", "hook_port"), ("hook", "hook_intake_port")),
)
# By what is asked: the release that has the client.
CLIENTS = {"kafka": "kafka-admin", "redis": "telemetry", "postgres": "api", "http": "telemetry"}


def neighbour() -> str:
    """A member of the VPN that is attacked itself nowhere; others serve models, too."""
    attacked = {
        name for server in SERVERS if server.group != "llm_server" for name in members(server.group)
    }
    return next(name for name in members("wireguard") if name not in attacked)


def host_of(server: Server) -> str:
    """Where the server is attacked."""
    return next(name for name in members(server.group) if name != neighbour())


def address(server: Server) -> str:
    name = host_of(server)
    return f"{vpn_address(name)}:{setting(name, server.group, server.port)}"


def test_every_port_that_a_member_reaches_is_attacked_by_a_test() -> None:
    own = {name: vpn_address(name) for name in members("managed") if name != neighbour()}
    listening = {
        f"{vpn}:{port}"
        for name, vpn in own.items()
        for line in shell(connect(name), "ss -Hltn | awk '{print $4}'").splitlines()
        for where, _, port in [line.rpartition(":")]
        if where in {vpn, "*", "0.0.0.0", "[::]"}
    }
    seen = probe(connect(neighbour()), "tcp_connect", *sorted(listening))
    reached = {where for where, answer in seen.items() if answer == "open"}
    attacked = {
        f"{vpn_address(name)}:{setting(name, group, port)}"
        for group, port in [*SERVICES, *((server.group, server.port) for server in SERVERS)]
        for name in members(group)
    }
    assert {where for where in reached if not where.endswith(f":{SSH_PORT}")} <= attacked
    assert {address(server) for server in SERVERS} <= reached


@contextmanager
def program(
    name: str, source: Path, *arguments: str, python: str = SYSTEM_PYTHON
) -> Iterator[subprocess.Popen[str]]:
    """A program on a host that ends when its standard input does."""
    script = f"timeout {PROGRAM_SECONDS} %s -B -c %s" + " %s" * len(arguments)
    command = connect(name).backend.quote(script, python, source.read_text(), *arguments)
    with subprocess.Popen(
        ["ssh", "-F", str(fleet.LAB / "ssh" / "config"), f"root@{name}", command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def told(process: subprocess.Popen[str]) -> Any:
    """End a program; return what it prints then."""
    output, error = process.communicate(timeout=PROGRAM_SECONDS)
    assert process.returncode == 0, f"ends with {process.returncode}: {error}"
    return json.loads(output)


def state(server: Server) -> dict[str, Any]:
    """A part of its cgroup's name, the memory it may have, and what changes when it restarts."""
    host, (project, slash, service) = connect(host_of(server)), server.cgroup.partition("/")
    if not slash:
        script = 'systemctl show -p MemoryMax,NRestarts,MainPID "$1"'
        run = dict(line.split("=", 1) for line in shell(host, script, server.cgroup).splitlines())
        return {"cgroup": server.cgroup, "limit": int(run.pop("MemoryMax")), "run": run}
    # Of the limit Docker knows nothing where the host's cgroups cannot enforce it.
    script = """
        cd "/opt/prime-spark/stack/$1"
        docker inspect "$(docker compose ps --all --quiet "$2")"
        docker compose config --format json
    """
    found, end = json.JSONDecoder().raw_decode(text := shell(host, script, project, service))
    limit = json.loads(text[end:])["services"][service]["mem_limit"]
    run = {key: found[0]["State"][key] for key in ("StartedAt", "OOMKilled", "Status")}
    return {"cgroup": found[0]["Id"], "limit": int(limit), "run": run}


def attack(server: Server) -> Any:
    return program(neighbour(), HOSTILE, f"{address(server)}{server.posts}", "-", *server.attacks)


def good_requests(server: Server) -> list[float]:
    """Ask on; return the seconds that each answer took."""
    asker, python = members(server.asker)[0], service_python(CLIENTS[server.good])
    asked = f"http://{address(server)}{server.path}" if server.good == "http" else address(server)
    limits = (str(SECONDS), str(PATIENCE))
    arguments = ("good_requests", server.good, asked, *limits)
    return list(probe(connect(asker), *arguments, python=python, seconds=PROGRAM_SECONDS))


@pytest.mark.timeout(2 * PROGRAM_SECONDS)
def test_a_hostile_neighbour_costs_little_and_holds_nobody_up() -> None:
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(len(SERVERS)))
        before = dict(zip(SERVERS, pool.map(state, SERVERS), strict=True))
        watchers = [
            stack.enter_context(
                program(
                    name,
                    PROBES / "memory_peak.py",
                    *(before[server]["cgroup"] for server in SERVERS if host_of(server) == name),
                )
            )
            for name in {host_of(server) for server in SERVERS}
        ]
        attackers = {server: stack.enter_context(attack(server)) for server in SERVERS}
        for attacker in attackers.values():
            assert attacker.stdout is not None
            assert attacker.stdout.readline() == "complete\n", attacker.communicate()
        asked = {server: pool.submit(good_requests, server) for server in SERVERS}
        took = {server: future.result() for server, future in asked.items()}
        reports = dict(zip(SERVERS, pool.map(told, attackers.values()), strict=True))
        peaks = {cgroup: peak for watcher in watchers for cgroup, peak in told(watcher).items()}
        after = dict(zip(SERVERS, pool.map(state, SERVERS), strict=True))
    for server in SERVERS:
        times, peak, limit = took[server], peaks[before[server]["cgroup"]], before[server]["limit"]
        print(
            f"{server.cgroup}: {peak / MIB:.0f} of {limit / MIB:.0f} MiB,"
            f" {statistics.median(times):.2f} s, {max(times):.2f} s at worst\n"
            f"    {json.dumps(reports[server])}"
        )
    for server in SERVERS:
        assert after[server] == before[server], f"{server.cgroup} was restarted"
        assert peaks[before[server]["cgroup"]] < before[server]["limit"], server.cgroup
        for name, came_of_it in reports[server].items():
            assert name in SLOW or came_of_it["ended"], f"{server.cgroup} ends no {name}"

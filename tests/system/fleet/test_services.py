"""S13: the Python services: releases, units, credentials, and where they answer."""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Any, NamedTuple

import pytest
from ansible_collections.prime_spark.fleet.plugins.action import python_release
from testinfra.host import Host

from tests.system.fleet import fleet
from tests.system.fleet.fleet import (
    connect,
    members,
    name_of,
    other_address,
    probe,
    setting,
    shell,
    vpn_address,
)

# systemd's own scale, 0 (nothing to fear) to 10.
EXPOSURE_LIMIT = 2.0


class Service(NamedTuple):
    """A service: its group, name, and the role's variable for its port."""

    group: str
    name: str
    port: str

    @property
    def unit(self) -> str:
        return f"prime-spark-{self.name}.service"


SERVICES = (
    Service("telemetry", "telemetry", "telemetry_port"),
    Service("ingest", "ingest", "ingest_port"),
    Service("api", "api", "api_port"),
    Service("spark_agent", "agent", "spark_agent_port"),
    Service("dispatcher", "dispatcher", "dispatcher_port"),
)
# What is not a service, but comes as a release as well.
COMMANDS = {"kafka": "kafka-admin", "timescale": "db", "cli": "cli"}
COMPONENTS = {
    "telemetry": {"kafka", "redis"},
    "ingest": {"kafka", "database", "dead_letters"},
    "api": {"redis", "kafka"},
    "agent": {"nas", "synthesis", "recognition", "redis", "kafka"},
    "dispatcher": {"redis", "agents"},
}

each_service = pytest.mark.parametrize(
    ("host", "service"),
    [
        pytest.param(name, service, id=f"{service.name}-{name}")
        for service in SERVICES
        for name in members(service.group)
    ],
    indirect=["host"],
)
each_release = pytest.mark.parametrize(
    ("host", "service"),
    [
        pytest.param(host, service, id=f"{service}-{host}")
        for group, service in [*((s.group, s.name) for s in SERVICES), *COMMANDS.items()]
        for host in members(group)
    ],
    indirect=["host"],
)


@cache
def expected_release(target: str) -> str:
    """The hash that the action plugin gives to the sources of this checkout."""
    source = fleet.ROOT / "files" / "python_services"
    return str(
        python_release.release_hash(str(source), str(source / "locks" / f"{target}.txt"), target)
    )


@each_release
def test_current_is_the_release_of_this_checkout(host: Host, service: str) -> None:
    home = f"/opt/prime-spark/services/{service}"
    script = (
        "import platform, sys; print('%s-py%d%d' % (platform.machine(), *sys.version_info[:2]))"
    )
    target = shell(host, 'python3 -c "$1"', script)
    assert shell(host, 'readlink "$1"', f"{home}/current") == (
        f"{home}/releases/{expected_release(target)}"
    ), "run site.yml: the sources changed since"


@each_release
def test_a_release_is_a_complete_environment_of_its_own_without_pip(
    host: Host, service: str
) -> None:
    listing = shell(
        host,
        'cd "$1" && cat pyvenv.cfg && ls -A . bin lib/python3*/site-packages'
        ' && find .. -mindepth 1 -maxdepth 1 | wc -l && stat --format "%U %A" . bin/python3',
        f"/opt/prime-spark/services/{service}/current/",
    ).splitlines()
    assert "include-system-site-packages = false" in listing
    assert ".complete" in listing
    assert not [line for line in listing if re.match(r"pip\d*$|pip-", line)]
    assert [line for line in listing if line.startswith("prime_spark-")]
    assert listing[-2].startswith("root drwxr-xr-x")
    assert 1 <= int(listing[-3]) <= 3
    # Installed from what was sent along: nothing was ever fetched or built here.
    assert shell(host, "find /root/.cache /var/cache -path '*pip*' 2>/dev/null || true") == ""


@each_service
def test_the_unit_runs_sandboxed_and_not_as_root(host: Host, service: Service) -> None:
    properties = "ActiveState,SubState,UnitFileState,Type,Restart,MemoryMax,TasksMax,MainPID"
    shown = dict(
        line.split("=", 1)
        for line in shell(host, f"systemctl show -p {properties} {service.unit}").splitlines()
    )
    assert (shown["ActiveState"], shown["SubState"]) == ("active", "running")
    assert (shown["UnitFileState"], shown["Type"], shown["Restart"]) == (
        *("enabled", "notify", "always"),
    )
    assert shown["MemoryMax"].isdigit() and shown["TasksMax"].isdigit()
    assert shell(host, 'ps -o uid= -p "$1"', shown["MainPID"]).strip() != "0"
    executable = shell(host, 'tr "\\0" " " < "/proc/$1/cmdline"', shown["MainPID"])
    assert f"/opt/prime-spark/services/{service.name}/" in executable
    answer = shell(host, f"systemd-analyze security --no-pager {service.unit} | tail -n 1")
    exposure = re.search(r"exposure level for \S+: ([\d.]+)", answer)
    assert exposure is not None, answer
    assert float(exposure[1]) <= EXPOSURE_LIMIT


@each_service
def test_credentials_are_files_of_root_and_reach_the_service_by_systemd(
    host: Host, service: Service
) -> None:
    unit = shell(host, f"systemctl cat {service.unit}")
    assert "Environment" not in unit
    config = f"/etc/prime-spark/{service.name}"
    loaded = dict(re.findall(r"^LoadCredential=([^:]+):(.+)$", unit, re.MULTILINE))
    assert loaded == {name: f"{config}/credentials/{name}" for name in loaded}
    named = set(re.findall(r'"credential": "([^"]+)"', shell(host, f"cat {config}/config.json")))
    assert set(loaded) == named
    script = 'find "$1" -mindepth 1 -printf "%M %u %g %s %f\\n"; stat --format "%A %U %G" "$1"'
    *files, directory = shell(host, script, f"{config}/credentials").splitlines()
    assert directory == "drwx------ root root"
    modes = {line.split()[4]: line.split()[:3] for line in files}
    assert modes == {name: ["-rw-------", "root", "root"] for name in loaded}
    assert all(int(line.split()[3]) >= 32 for line in files)


@each_service
def test_health_and_metrics_answer_on_the_vpn_address_only(host: Host, service: Service) -> None:
    """The metrics answer Prometheus and the host itself, no other peer."""
    name = name_of(host)
    port = setting(name, service.group, service.port)
    inside = f"http://{vpn_address(name)}:{port}"
    readers = {name, *members("monitoring")}
    peer = next(n for n in members("wireguard") if n not in readers)

    def answers() -> dict[str, Any]:
        return dict(probe(connect(peer), "http_get", f"{inside}/health", f"{inside}/metrics"))

    seen = fleet.wait_until(
        f"{service.name} on {name} is well",
        answers,
        30,
        lambda found: '"status":"ok"' in found[f"{inside}/health"].get("body", ""),
    )
    assert seen[f"{inside}/metrics"]["status"] == 403
    health = json.loads(seen[f"{inside}/health"]["body"])
    assert (health["service"], health["status"]) == (service.name, "ok")
    assert set(health["components"]) >= COMPONENTS[service.name]
    for reader in sorted(readers):
        metrics = probe(connect(reader), "http_get", f"{inside}/metrics")[f"{inside}/metrics"]
        assert re.search(r"^\w+(\{.*\})? \d", metrics.get("body", ""), re.MULTILINE), reader

    outside = [f"http://{address}:{port}/health" for address in ("127.0.0.1", other_address(name))]
    refused = probe(host, "http_get", *outside)
    assert [refused[url].get("status") for url in outside] == [None, None]
    assert all("refused" in refused[url]["error"] for url in outside)

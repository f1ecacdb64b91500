"""No secret of the vault stands where it could be read: repository, units, processes, Docker.

Hosts are asked by digest, so that no secret travels to where it is not; failures name secrets and
places, never values.
"""

from __future__ import annotations

import os
import re
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

from testinfra.host import Host

from tests.system.fleet import fleet
from tests.system.fleet.canaries import scan, scan_host
from tests.system.fleet.fleet import members, name_of, on, shell, variables

# Which secrets a host may hold, by its groups. The seed of the preshared keys is on none.
NEEDED = {
    "telemetry": {"vault_kafka_telemetry_password", "vault_redis_telemetry_password"},
    "ingest": {"vault_kafka_ingest_password", "vault_timescale_ingest_password"},
    "kafka": {
        "vault_kafka_admin_password",
        "vault_kafka_agent_password",
        "vault_kafka_api_password",
        "vault_kafka_exporter_password",
        "vault_kafka_ingest_password",
        "vault_kafka_telemetry_password",
    },
    # The exporters of the servers run beside them.
    "redis": {"vault_redis_exporter_password"},
    # Of its users the API has hashes alone.
    "api": {
        "vault_api_signing_key",
        "vault_redis_api_password",
        "vault_kafka_api_password",
        "vault_timescale_api_password",
        "vault_llm_server_token",
    },
    "llm_server": {"vault_llm_server_token"},
    "spark_agent": {
        "vault_llm_server_token",
        "vault_agent_token",
        "vault_redis_agent_password",
        "vault_kafka_agent_password",
    },
    "dispatcher": {"vault_redis_dispatcher_password", "vault_agent_token"},
    "timescale": {
        "vault_timescale_superuser_password",
        "vault_timescale_owner_password",
        "vault_timescale_exporter_password",
    },
    "monitoring": {
        "vault_deadman_token",
        "vault_grafana_admin_password",
        "vault_monitoring_internal_password",
        "vault_timescale_reader_password",
    },
    "deadman": {"vault_deadman_token"},
    "hook": {
        "vault_hook_alerts",
        "vault_hook_github",
        "vault_monitoring_internal_password",
    },
    "airflow": {
        "vault_airflow_admin_password",
        "vault_airflow_api_secret",
        "vault_redis_pipeline_password",
        "vault_timescale_airflow_password",
        "vault_timescale_pipeline_password",
    },
}
# Where they may stand there: owned by root or by the user of the container that reads them.
PLACES = {
    r"/etc/prime-spark/[a-z_-]+/credentials/[a-z0-9_-]+": {("0600", 0)},
    r"/opt/prime-spark/stack/kafka/config/kafka/secret/[a-z.]+": {("0400", 71001)},
    r"/etc/wireguard/[a-z0-9.]+": {("0600", 0)},
    r"/opt/prime-spark/stack/airflow/config/airflow/secret/[a-z_.]+": {("0400", 50000)},
    r"/opt/prime-spark/stack/timescale/config/timescale/secret/[a-z_]+": {("0400", 70)},
    r"/opt/prime-spark/stack/exporters/config/postgres-exporter/secret/password": {("0400", 71006)},
    r"/opt/prime-spark/stack/exporters/config/redis-exporter/secret/passwords.json": {
        ("0400", 71007)
    },
    r"/opt/prime-spark/stack/monitoring/config/prometheus/secret/[a-z_-]+": {("0400", 71003)},
    r"/opt/prime-spark/stack/monitoring/config/alertmanager/secret/[a-z_-]+": {("0400", 71004)},
    r"/opt/prime-spark/stack/monitoring/config/grafana/secret/[a-z_]+": {("0400", 71005)},
}
# systemd's own copies, for the service's user only, in a directory of that user.
LOADED = r"/run/credentials/prime-spark-[a-z-]+\.service/[a-z0-9_-]+"


@cache
def seen_on(name: str) -> dict[str, Any]:
    """Where secrets stand on a host."""
    return scan_host(name, "files", "processes", "docker")


def keys_of(name: str) -> set[str]:
    """The WireGuard keys that a host has to have: its own, and one for each of its pairs."""
    hosts = members("wireguard")
    if name not in hosts:
        return set()
    (hub,) = [host for host in hosts if variables(host).get("wireguard_role") == "hub"]
    others = [host for host in hosts if host != hub] if name == hub else [hub]
    pairs = [sorted((name, other)) for other in others]
    return {f"preshared key of {a} and {b}" for a, b in pairs} | {
        f"WireGuard private key of {name}"
    }


@on("all")
def test_secrets_stand_in_files_that_only_their_user_can_read(host: Host) -> None:
    wrong = {}
    for path, (names, mode, owner, closed) in seen_on(name_of(host))["files"].items():
        allowed = [modes for place, modes in PLACES.items() if re.fullmatch(place, path)]
        loaded = re.fullmatch(LOADED, path) is not None and mode in {"0400", "0440"}
        if not closed or (not loaded and (mode, owner) not in set().union(*allowed)):
            wrong[path] = (names, mode, owner, f"directory closed: {closed}")
    assert wrong == {}


@on("all")
def test_a_host_has_the_secrets_that_its_groups_need_and_no_other(host: Host) -> None:
    """Also shows that the search finds what is there."""
    name = name_of(host)
    needed = {key for group, keys in NEEDED.items() if name in members(group) for key in keys}
    needed |= keys_of(name)
    found = {key for names, *_ in seen_on(name)["files"].values() for key in names}
    assert found == needed


@on("all")
def test_no_process_has_a_secret_in_its_arguments_or_environment(host: Host) -> None:
    assert seen_on(name_of(host))["processes"] == {}


@on("docker")
def test_no_user_of_the_host_is_the_user_of_a_container(host: Host) -> None:
    # Who has the same number reads the container's secrets through /proc, whatever the files say.
    users = """
    docker ps --quiet | xargs docker inspect --format '{{.Name}} {{.State.Pid}}' |
    while read -r name pid; do
        for group in $(cat /proc/"$pid"/cgroup); do
            xargs -a /sys/fs/cgroup"${group#*::}"/cgroup.procs -I{} stat -c "$name %u" /proc/{}
        done
    done | sort -u
    """
    used: dict[int, set[str]] = {}
    for line in shell(host, users).splitlines():
        name, uid = line.split()
        used.setdefault(int(uid), set()).add(name)
    used.pop(0, None)  # what starts as root and drops its rights
    accounts = {int(line.split(":")[2]) for line in shell(host, "getent passwd").splitlines()}
    assert used and not used.keys() & (accounts | {65534, 1000})
    shared = [names for names in used.values() if len({n.split("-")[0] for n in names}) > 1]
    assert shared == [], "one number in two projects"


@on("docker")
def test_docker_tells_no_secret(host: Host) -> None:
    assert seen_on(name_of(host))["docker"] == []


def test_no_secret_is_on_the_controller_outside_of_the_vault() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=fleet.ROOT,
        capture_output=True,
        check=True,
    ).stdout
    files = [fleet.ROOT / name.decode() for name in listed.split(b"\0") if name]
    for place in (fleet.LAB / "logs", fleet.LAB / "ssh", Path.home() / ".ansible"):
        # Temporary directories of other runs may go meanwhile, which os.walk takes calmly.
        files += [Path(top, leaf) for top, _, leaves in os.walk(place) for leaf in leaves]
    read, found = 0, {}
    for path in files:
        if path.is_file():
            read += 1
            if names := scan(path.read_bytes()):
                found[str(path)] = names
    assert found == {}
    assert read > 100


def test_the_vault_is_encrypted_and_private() -> None:
    directory = fleet.LAB / "secrets"
    assert directory.stat().st_mode & 0o077 == 0
    for path in directory.iterdir():
        assert path.stat().st_mode & 0o177 == 0, path
    assert (directory / "vault.yml").read_text().startswith("$ANSIBLE_VAULT;")

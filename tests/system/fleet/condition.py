"""What of a host is not as it should be, and waiting until the whole fleet is well."""

from __future__ import annotations

import re
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tests.system.fleet import fleet
from tests.system.fleet.fleet import connect, members, probe, setting, shell, vpn_address

# By group: the units that have to be active. What listens is up before what it serves is there.
UNITS = {
    "managed": ["prime-spark-sysctl.service"],
    "wireguard": [
        "wg-quick@wg0.service",
        "prime-spark-vpn-guard.service",
        "prime-spark-vpn-status.timer",
    ],
    "nas": ["mnt-nas.automount"],
    "nas_server": ["ssh.service"],
    "docker": ["docker.service"],
    "telemetry": ["prime-spark-telemetry.service"],
    "ingest": ["prime-spark-ingest.service"],
    "api": ["prime-spark-api.service"],
    "spark_agent": ["prime-spark-agent.service"],
    "dispatcher": ["prime-spark-dispatcher.service"],
    "llm_server": ["prime-spark-llm-server.service"],
    "node_exporter": ["prime-spark-node-exporter.service", "prime-spark-host-metrics.timer"],
    "deadman": ["prime-spark-deadman.service"],
}
PROJECTS = ("kafka", "redis", "timescale", "airflow", "exporters", "monitoring")
# By group: the role's variable for the port of its /health.
PORTS = {
    "telemetry": "telemetry_port",
    "ingest": "ingest_port",
    "api": "api_port",
    "spark_agent": "spark_agent_port",
    "dispatcher": "dispatcher_port",
}


def groups_of(name: str) -> set[str]:
    """The groups of a host that mean something here."""
    return {group for group in {*UNITS, *PROJECTS} if name in members(group)}


def boot_id(name: str) -> str:
    """Another one after every boot."""
    return shell(connect(name), "cat /proc/sys/kernel/random/boot_id")


def state(name: str, *, share: bool = True) -> dict[str, Any]:
    """What of a host is not as it should be; nothing when it is well."""
    groups, host = groups_of(name), connect(name)
    units = [unit for group in sorted(groups & set(UNITS)) for unit in UNITS[group]]
    wrong: dict[str, Any] = {}
    states = shell(host, 'systemctl is-active "$@" || true', *units).splitlines()
    wrong["units"] = [(u, s) for u, s in zip(units, states, strict=True) if s != "active"]
    wrong["failed"] = shell(host, "systemctl --failed --plain --no-legend").splitlines()
    if projects := sorted(groups & set(PROJECTS)):
        script = "docker ps --all --format '{{.Label \"com.docker.compose.project\"}} {{.Status}}'"
        found = [line.split(" ", 1) for line in shell(host, script).splitlines()]
        ill = [status for _, status in found if not re.match(r"Up .*\(healthy\)", status)]
        wrong["containers"] = [found] if ill or {p for p, _ in found} != set(projects) else []
    if share and "nas" in groups:
        script = "timeout 20 ls -A /mnt/nas && findmnt --noheadings --output FSTYPE /mnt/nas"
        wrong["mount"] = [] if ".prime-spark-nas" in shell(host, script) else ["no share"]
    if "wireguard" in groups:
        others = [vpn_address(n) for n in members("wireguard") if n != name]
        script = 'for a; do ping -q -c 1 -W 2 "$a" >/dev/null || echo "$a"; done'
        wrong["vpn"] = shell(host, script, *others).splitlines()
    return {what: seen for what, seen in wrong.items() if seen}


def urls(page: str) -> dict[str, str]:
    """By "group host": where each of our services answers in the VPN."""
    return {
        f"{group} {name}": f"http://{vpn_address(name)}:{setting(name, group, port)}/{page}"
        for group, port in PORTS.items()
        for name in members(group)
    }


def unhealthy() -> dict[str, Any]:
    """What the services' /health answers, where that is not 200; asked through the VPN."""
    asked = urls("health")
    answers = probe(connect(members("kafka")[0]), "http_get", *asked.values())
    return {what: answers[url] for what, url in asked.items() if answers[url].get("status") != 200}


def buffered() -> dict[str, float]:
    """By device: how many samples wait for Kafka."""
    asked = {
        what.split()[1]: url
        for what, url in urls("metrics").items()
        if what.startswith("telemetry ")
    }
    pages = probe(connect(members("monitoring")[0]), "http_get", *asked.values())
    pattern = re.compile(r"^prime_spark_telemetry_buffer_records (\S+)", re.MULTILINE)
    found = {device: pattern.search(pages[url].get("body", "")) for device, url in asked.items()}
    return {device: float(match[1]) for device, match in found.items() if match}


def wait_all_well(seconds: float, *, share: bool = True) -> None:
    """Wait until nothing is wrong with any host and every service answers 200."""
    names, deadline = members("all"), time.monotonic() + seconds

    def wait(name: str) -> None:
        left = max(1.0, deadline - time.monotonic())
        fleet.wait_until(
            f"all well on {name}", lambda: state(name, share=share), left, lambda wrong: not wrong
        )

    with ThreadPoolExecutor(len(names)) as pool:
        list(pool.map(wait, names))
    left = max(1.0, deadline - time.monotonic())
    fleet.wait_until("every service at 200", unhealthy, left, lambda wrong: not wrong)

"""What the tests of VPN changes share: runs with other inputs, and looks at the VPN."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.system.fleet import fleet
from tests.system.fleet.fleet import connect, members, query, shell, variables
from tests.system.fleet.recap import recap_of

INTERFACE = "wg0"
PENDING = "/etc/wireguard/revert/state.json"
LEFT_BEHIND = (
    "/etc/wireguard/revert /etc/wireguard/.revert-* "
    "/etc/systemd/system/prime-spark-vpn-revert-at-boot.service "
    "/etc/systemd/system/multi-user.target.wants/prime-spark-vpn-revert-at-boot.service"
)


def hub() -> str:
    (name,) = [n for n in members("wireguard") if variables(n).get("wireguard_role") == "hub"]
    return name


def spokes() -> list[str]:
    return [name for name in members("wireguard") if name != hub()]


def overlay(directory: Path, hosts: Mapping[str, Mapping[str, Any]]) -> Path:
    """An inventory file that gives hosts other variables, to stand after the lab's."""
    path = directory / "overlay.json"
    path.write_text(json.dumps({"all": {"hosts": hosts}}))
    return path


def command(*arguments: str, overlay: Path | None = None) -> list[str]:
    inventories = ["-i", str(fleet.ROOT / "inventories" / "lab")]
    inventories += ["-i", str(overlay)] if overlay else []
    program = str(fleet.BIN / "ansible-playbook")
    return [program, *inventories, "site.yml", "--tags", "wireguard", *arguments]


def start(*arguments: str, overlay: Path | None = None) -> subprocess.Popen[str]:
    """A run that the test watches, in a process group of its own."""
    return subprocess.Popen(
        command(*arguments, overlay=overlay),
        cwd=fleet.ROOT,
        env={**os.environ, "ANSIBLE_NOCOLOR": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def kill(process: subprocess.Popen[str]) -> None:
    """kill -9 of ansible-playbook and of all its workers, as when the controller dies."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def play(*arguments: str, overlay: Path | None = None) -> tuple[int, str]:
    """Exit status and output of a run of the tag."""
    done = subprocess.run(
        command(*arguments, overlay=overlay),
        cwd=fleet.ROOT,
        env={**os.environ, "ANSIBLE_NOCOLOR": "1"},
        capture_output=True,
        text=True,
        # Ends what hangs; a busy machine takes minutes.
        timeout=600,
    )
    return done.returncode, f"{done.stdout}{done.stderr}"


def changed(output: str) -> dict[str, int]:
    """Number of changed tasks by host, out of the recap."""
    return {name: counts["changed"] for name, counts in recap_of(output).items()}


def apply(*arguments: str, overlay: Path | None = None) -> str:
    """A run that has to succeed; returns what it printed."""
    status, output = play(*arguments, overlay=overlay)
    assert status == 0, output[-4000:]
    return output


def assert_nothing_to_do(*arguments: str, overlay: Path | None = None) -> None:
    output = apply(*arguments, overlay=overlay)
    counts = changed(output)
    assert counts and not any(counts.values()), output[-4000:]


def address(name: str) -> str:
    """The address that the interface of a host really has.

    AssertionError: it has none, as for a moment while the interface comes up.
    """
    shown = json.loads(shell(connect(name), f"ip -json -4 address show dev {INTERFACE}"))
    found = [entry["local"] for link in shown for entry in link.get("addr_info", [])]
    assert found, f"{INTERFACE} of {name} has no address"
    return str(found[0])


def unreachable_pairs() -> list[str]:
    """Which spokes do not reach which others, each at the address of the inventory."""
    wrong = []
    for name in members("wireguard"):
        others = [fleet.vpn_address(other) for other in members("wireguard") if other != name]
        script = 'for a; do ping -q -c 1 -W 2 "$a" >/dev/null || echo "$a"; done'
        lost = shell(connect(name), script, *others).split()
        wrong += [f"{name} -> {other}" for other in lost]
    return wrong


def wait_until_whole(seconds: float = 60) -> None:
    """Every host reaches every other one over the VPN, at the inventory's addresses."""
    fleet.wait_until(
        "the whole VPN", unreachable_pairs, seconds, lambda wrong: not wrong, interval=1
    )


def newest_rows() -> dict[str, str]:
    rows = query(
        "SELECT device_id, max(time)::text AS time FROM device_metrics"
        " WHERE time > now() - interval '1 hour' GROUP BY 1"
    )
    return {row["device_id"]: row["time"] for row in rows}


def wait_for_telemetry(seconds: float = 60) -> None:
    """New rows of every device, which come over the VPN twice: to Kafka and to the database."""
    before = newest_rows()
    fleet.wait_until(
        "new rows of every device",
        newest_rows,
        seconds,
        lambda rows: all(rows.get(d, "") > before.get(d, "") for d in members("telemetry")),
    )


def left_behind(name: str) -> list[str]:
    """What of the way back is still on a host, its timer included."""
    script = (
        f"ls -d {LEFT_BEHIND} 2>/dev/null || true; "
        "systemctl list-units --plain --no-legend --state=active,activating "
        "'prime-spark-vpn-revert*'"
    )
    return shell(connect(name), script).splitlines()


@contextmanager
def forwarded(port: int) -> Iterator[None]:
    """The home router forwards one more UDP port to the hub, as its owner would set it."""
    inside = fleet.other_address(hub())
    rules = {
        "inet lab forward": f"iifname wan ip daddr {inside} udp dport {port} ct status dnat accept",
        "ip nat prerouting": f"iifname wan udp dport {port} dnat to {inside}",
    }
    for chain, rule in rules.items():
        router("add", "rule", *chain.split(), *rule.split(), "comment", f'"test-{port}"')
    try:
        yield
    finally:
        for chain in rules:
            listing = router("--handle", "list", "chain", *chain.split())
            for handle in re.findall(rf'"test-{port}" # handle (\d+)', listing):
                router("delete", "rule", *chain.split(), "handle", handle)


def router(*arguments: str) -> str:
    """nft in the namespace of the lab's router."""
    run = Path(os.environ.get("PRIME_SPARK_LAB_RUN", "/run/prime-spark-lab"))
    pid = json.loads((run / "owner.json").read_text())["pid"]
    namespace = f"/proc/{pid}/root/run/netns/router"
    done = subprocess.run(
        ["nsenter", f"--net={namespace}", "nft", *arguments], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout

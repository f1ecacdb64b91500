"""S2: hub and spokes talk to each other, and private keys are where they were born only."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import time
from functools import cache
from pathlib import Path

from prime_spark.vpn import VPNManager
from testinfra.host import Host

from tests.system.fleet import fleet
from tests.system.fleet.fleet import (
    connect,
    members,
    name_of,
    on,
    probe,
    shell,
    variables,
    vpn_address,
)

HANDSHAKE_SECONDS = 180
STATUS = "/run/prime-spark/vpn.json"
KEY = re.compile(rb"[A-Za-z0-9+/]{43}=")
# Everywhere that a role, a service or an operator writes to. Docker's own files and the data of
# the servers are far too large to be read by every run.
DIRECTORIES = ["/etc", "/root", "/home", "/run", "/tmp", "/var/tmp", "/var/log", "/opt", "/srv"]
DIRECTORIES += ["/usr/local", "/var/lib/prime-spark/trees", "/var/lib/systemd", "/var/backups"]
KEY_FILES = {"/etc/wireguard/private.key", "/etc/wireguard/wg0.conf"}


def hub() -> str:
    (name,) = [n for n in members("wireguard") if variables(n).get("wireguard_role") == "hub"]
    return name


def peers_of(name: str) -> set[str]:
    return set(members("wireguard")) - {name} if name == hub() else {hub()}


@on("wireguard")
def test_every_peer_has_a_fresh_handshake(host: Host) -> None:
    def ages() -> list[float]:
        lines = shell(host, "wg show wg0 latest-handshakes").splitlines()
        return [time.time() - int(line.split("\t")[1]) for line in lines]

    expected = len(peers_of(name_of(host)))
    fleet.wait_until(
        f"{expected} fresh handshakes on {name_of(host)}",
        ages,
        60,
        lambda seen: len(seen) == expected and all(age < HANDSHAKE_SECONDS for age in seen),
    )


@on("wireguard")
def test_every_other_host_answers_over_the_vpn(host: Host) -> None:
    """Spokes reach each other through the hub, which costs a packet one hop."""
    own = name_of(host)
    others = {vpn_address(name): name for name in members("wireguard") if name != own}
    script = 'for a; do echo "$a $(ping -c 1 -W 2 -I wg0 "$a" | grep -o "ttl=[0-9]*")"; done'
    wanted = {
        f"{address} ttl={64 if hub() in (own, name) else 63}" for address, name in others.items()
    }
    fleet.wait_until(
        f"answers to {own}",
        lambda: set(shell(host, script, *others).splitlines()),
        30,
        lambda seen: seen == wanted,
    )


@on("wireguard")
def test_a_spoke_takes_the_shortest_way_to_the_hub(host: Host) -> None:
    own = name_of(host)
    if own == hub():
        expected = ""
    else:
        same_lan = variables(own).get("wireguard_lan") == variables(hub())["wireguard_lan"]
        which = "wireguard_lan_endpoint" if same_lan else "wireguard_endpoint"
        expected = variables(hub())[which]
    if expected:
        endpoints = shell(host, "wg show wg0 endpoints | cut -f 2")
        assert endpoints == expected


@on("wireguard")
def test_the_published_status_has_no_key_and_says_that_all_is_well(
    host: Host, tmp_path: Path
) -> None:
    own = name_of(host)
    # As nobody: the services that read it are not root.
    text = shell(host, f"setpriv --reuid=65534 --regid=65534 --clear-groups cat {STATUS}")
    # Counted first: a failing test must not print a key either.
    count = len(KEY.findall(text.encode()))
    assert count == 0, f"{count} keys in {STATUS}"
    document = json.loads(text)
    assert set(document) == {"time", "interface", "peers"}
    for peer in document["peers"]:
        assert set(peer) == {
            *("name", "vpn_address", "endpoint", "latest_handshake", "rx_bytes", "tx_bytes")
        }
    copy = tmp_path / "vpn.json"
    copy.write_text(text)
    peers = VPNManager(copy).get_peer_status()
    assert {p.name: p.vpn_address for p in peers} == {n: vpn_address(n) for n in peers_of(own)}
    assert {p.name: p.healthy for p in peers} == dict.fromkeys(peers_of(own), True)
    assert all(p.rx_bytes > 0 and p.tx_bytes > 0 and p.endpoint for p in peers)


@on("wireguard")
def test_key_files_are_for_root_only(host: Host) -> None:
    listing = shell(host, "stat --format '%A %U %G %n' /etc/wireguard /etc/wireguard/*").split("\n")
    modes = {line.split()[3]: line.split()[:3] for line in listing}
    assert modes.pop("/etc/wireguard") == ["drwx------", "root", "root"]
    assert set(modes) >= KEY_FILES
    assert set(map(tuple, modes.values())) == {("-rw-------", "root", "root")}


@cache
def keys() -> dict[str, tuple[str | None, dict[str, list[str]]]]:
    """By host: the digest of its private key, and the files by digest of what looks like a key."""
    answers = {n: probe(connect(n), "wireguard_keys", *DIRECTORIES) for n in members("all")}
    return {name: (answer["own"], answer["found"]) for name, answer in answers.items()}


@on("wireguard")
def test_a_private_key_is_on_no_other_host(host: Host) -> None:
    own, found = keys()[name_of(host)]
    assert own is not None
    assert set(found[own]) == KEY_FILES
    elsewhere = {n: files[own] for n, (_, files) in keys().items() if own in files}
    assert set(elsewhere) == {name_of(host)}


def test_no_private_key_is_on_the_controller() -> None:
    private = {own: name for name, (own, _) in keys().items() if own is not None}
    assert sorted(private.values()) == members("wireguard")
    home = Path.home()
    places = [fleet.LAB / "secrets", fleet.LAB / "logs", fleet.LAB / "ssh"]
    places += [home / ".ansible", home / ".cache" / "prime-spark" / "facts", Path("/tmp/ansible")]
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others"],
        cwd=fleet.ROOT,
        capture_output=True,
        check=True,
    ).stdout
    files = [fleet.ROOT / name.decode() for name in listed.split(b"\0") if name]
    files = [path for path in files if ".venv" not in path.parts]
    files += [path for place in places for path in place.rglob("*")]
    read = 0
    for path in files:
        if path.is_file():
            read += 1
            for key in KEY.findall(path.read_bytes()):
                digest = hashlib.sha256(key).hexdigest()
                assert digest not in private, f"the key of {private[digest]} is in {path}"
    assert read > 100


def test_the_guard_outlives_whoever_loads_other_rules() -> None:
    """On a host without Docker, whose rules `systemctl restart nftables` flushes as well."""
    name = next(name for name in members("wireguard") if name not in members("docker"))
    host = connect(name)
    listed = "nft list table ip prime_spark_vpn_guard >/dev/null && echo there || true"
    try:
        for action in ("restart", "reload"):
            shell(host, f"systemctl {action} nftables.service")
            fleet.wait_until(
                f"the guard of {name} after a {action}",
                lambda: shell(host, listed).strip(),
                30,
                lambda seen: seen == "there",
            )
    finally:
        shell(host, "systemctl stop nftables.service; systemctl start prime-spark-vpn-guard")

"""S1: the share is mounted when it is wanted, is one share, and a dead NAS holds nothing up."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
from testinfra.host import Host

from tests.fleet import fleet
from tests.fleet.fleet import connect, members, name_of, on, probe, service_python, setting, shell

CLIENTS = members("nas")
MOUNT_POINT = str(setting(CLIENTS[0], "nas", "nas_mount_point"))
SHARE = str(setting(CLIENTS[0], "nas", "nas_share"))
UNIT = MOUNT_POINT.strip("/").replace("-", "\\x2d").replace("/", "-")
SENTINEL = ".prime-spark-nas"
KEY_FILE = "/etc/prime-spark/nas/id_ed25519"
KNOWN_HOSTS = "/etc/prime-spark/nas/known_hosts"
KINDS = {"fuse.sshfs", "nfs4", "cifs"}
# After this long a look at a dead share has to end: three times the timeout, as the role sets it,
# and some time for a busy machine.
DEAD_SECONDS = 3 * int(setting(CLIENTS[0], "nas", "nas_timeout_seconds")) + 10


def mounted(host: Host) -> str:
    """Type of the file system at the mount point; empty while only the automount is there."""
    script = 'findmnt --noheadings --output FSTYPE --mountpoint "$1" | grep -v autofs || true'
    return shell(host, script, MOUNT_POINT)


def kind(host: Host) -> str:
    """Type of the file system that the mount unit asks for."""
    return shell(host, f"systemctl cat {UNIT}.mount | sed -n s/^Type=//p")


def storage(host: Host, *arguments: str) -> dict[str, Any]:
    python = service_python("telemetry")
    return dict(probe(host, "nas_storage", MOUNT_POINT, *arguments, python=python))


@on("nas")
def test_the_share_is_mounted_by_the_first_access(host: Host) -> None:
    shell(host, f"systemctl is-active {UNIT}.automount && systemctl is-enabled {UNIT}.automount")
    shell(host, f"systemctl stop {UNIT}.mount")
    assert mounted(host) == ""
    assert SENTINEL in shell(host, 'ls -A "$1"', MOUNT_POINT).splitlines()
    assert mounted(host) in KINDS
    shell(host, f"systemctl is-active {UNIT}.mount")


@on("nas")
def test_the_local_directory_beneath_is_empty_and_closed(host: Host) -> None:
    """What is written while the share is away must not land there: seen without what is mounted."""
    script = """
        set -e
        view=$(mktemp -d)
        trap 'rmdir "$view"' EXIT
        unshare --mount --propagation private bash -c '
            mount --bind / "$1"
            stat --format "%a %U" "$1$2"
            ls -A "$1$2"' bash "$view" "$1"
    """
    assert shell(host, script, MOUNT_POINT).splitlines() == ["0 root"]


@on("nas")
def test_the_units_hold_up_no_boot_and_wait_a_bounded_time(host: Host) -> None:
    properties = "Options,TimeoutUSec,RequiredBy,WantedBy,RequisiteOf,FragmentPath"
    shown = shell(host, f"systemctl show -p {properties} --value {UNIT}.mount").splitlines()
    text = shell(host, f"systemctl cat {UNIT}.mount {UNIT}.automount")
    (line,) = [entry for entry in text.splitlines() if entry.startswith("Options=")]
    options = line.removeprefix("Options=").split(",")
    assert {"_netdev", "nofail"} <= set(options)
    settings = dict(option.split("=", 1) for option in options if "=" in option)
    if kind(host) == "fuse.sshfs":
        assert int(settings["ConnectTimeout"]) <= 10
        assert int(settings["ServerAliveInterval"]) * int(settings["ServerAliveCountMax"]) <= 30
        assert settings["StrictHostKeyChecking"] == "yes"
    else:
        assert "soft" in options or "softerr" in options
        assert int(settings["timeo"]) * (int(settings["retrans"]) + 1) <= 600
    (bound,) = [entry for entry in text.splitlines() if entry.startswith("TimeoutSec=")]
    assert 0 < int(bound.removeprefix("TimeoutSec=")) <= 30
    assert not [target for target in shown if target.endswith(".target")]
    required = shell(host, f"systemctl show -p RequiredBy,RequisiteOf --value {UNIT}.automount")
    assert required == ""


@on("nas")
def test_the_key_is_for_root_only_and_the_server_is_pinned(host: Host) -> None:
    if kind(host) != "fuse.sshfs":
        pytest.skip(f"{kind(host)} has no key of its own")
    (server_name,) = members("nas_server")
    server = connect(server_name)
    assert shell(host, f"stat --format '%A %U %G' {KEY_FILE}") == "-rw------- root root"
    public = shell(host, f"ssh-keygen -y -f {KEY_FILE}").split()[:2]
    known = shell(server, f"cat /etc/ssh/prime-spark-nas/{name_of(host)}.pub").split()
    assert known[0] == "restrict"
    assert known[1:3] == public
    pinned = {line.split()[-1] for line in shell(host, f"cat {KNOWN_HOSTS}").splitlines()}
    keys = shell(server, "cut -d ' ' -f 2 /etc/ssh/ssh_host_*_key.pub").split()
    assert pinned
    assert pinned <= set(keys)


@pytest.fixture
def key() -> Iterator[str]:
    """A key for an object on the share; the object is removed afterwards."""
    name = f"fleet-test-{uuid.uuid4()}"
    yield name
    storage(connect(CLIENTS[0]), "delete", name)


@pytest.mark.parametrize(("writer", "reader"), [(w, r) for w in CLIENTS for r in CLIENTS if w != r])
def test_what_one_host_writes_another_reads(writer: str, reader: str, key: str) -> None:
    text = f"written by {writer}"
    assert storage(connect(writer), "store", key, text) == {"result": None}
    assert storage(connect(reader), "retrieve", key) == {"result": text}
    (server,) = members("nas_server")
    assert shell(connect(server), 'cat "$1"', f"{SHARE}/{key}.json") == f'"{text}"'


def test_there_are_two_hosts_to_share_with() -> None:
    assert len(CLIENTS) >= 2


def look_at_a_dead_share(name: str) -> None:
    """It fails in a bounded time, nothing lands on the local disk, the rest of the host runs."""
    host = connect(name)
    started = time.monotonic()
    answer = host.run("timeout 120 ls -A %s", MOUNT_POINT)
    elapsed = time.monotonic() - started
    assert answer.rc != 0, f"{name} lists a share that is away"
    assert elapsed < DEAD_SECONDS, f"{name} waited {elapsed:.0f} s"
    refused = storage(host, "store", "fleet-test-dead", "x")
    assert refused.get("error") in {"NASUnavailableError", "NASError"}, refused
    assert shell(host, "systemctl is-active prime-spark-telemetry.service") == "active"


def test_a_dead_nas_is_noticed_and_comes_back() -> None:
    (server,) = members("nas_server")
    for name in CLIENTS:
        shell(connect(name), 'ls "$1"', MOUNT_POINT)
    fleet.lab("cut", server)
    try:
        with ThreadPoolExecutor(len(CLIENTS)) as pool:
            list(pool.map(look_at_a_dead_share, CLIENTS))
    finally:
        fleet.lab("heal", server)
    for name in CLIENTS:
        fleet.wait_until(
            f"the share on {name}",
            partial(shell, connect(name), 'ls -A "$1"', MOUNT_POINT, seconds=30),
            60,
            lambda names: SENTINEL in names,
        )

"""S1: the share is mounted when it is wanted, and is one share."""

from __future__ import annotations

import inspect
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from ansible_collections.prime_spark.fleet.plugins.modules import nas_mount
from testinfra.host import Host

from tests.system.fleet.fleet import connect, members, name_of, on, probe, service_python, shell
from tests.system.fleet.nas import (
    CLIENTS,
    MOUNT_POINT,
    SENTINEL,
    SHARE,
    UNIT,
    beneath,
    kind,
    mounted,
    storage,
)

KEY_FILE = "/etc/prime-spark/nas/id_ed25519"
KNOWN_HOSTS = "/etc/prime-spark/nas/known_hosts"
KINDS = {"fuse.sshfs", "nfs4", "cifs"}


@on("nas")
def test_the_share_is_mounted_by_the_first_access(host: Host) -> None:
    shell(host, f"systemctl is-active {UNIT}.automount && systemctl is-enabled {UNIT}.automount")
    # What watches the share mounts it again at any moment: the mount has to be another one.
    before = shell(host, f"systemctl show -p InvocationID --value {UNIT}.mount")
    shell(host, f"systemctl stop {UNIT}.mount")
    assert SENTINEL in shell(host, 'ls -A "$1"', MOUNT_POINT).splitlines()
    assert mounted(host) in KINDS
    shell(host, f"systemctl is-active {UNIT}.mount")
    assert shell(host, f"systemctl show -p InvocationID --value {UNIT}.mount") != before


@on("nas")
def test_the_local_directory_beneath_is_empty_and_closed(host: Host) -> None:
    """What is written while the share is away must not land there."""
    assert beneath(host) == ["0 root"]


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


def test_readers_see_the_old_value_or_the_new(key: str) -> None:
    assert storage(connect(CLIENTS[0]), "store", key, "a" * 100) == {"result": None}
    python = service_python("telemetry")
    begin = time.time() + 3

    def use(name: str, writers: int) -> Counter[str]:
        arguments = (MOUNT_POINT, key, str(begin), "4", str(writers), "2")
        return Counter(probe(connect(name), "nas_replace", *arguments, python=python))

    with ThreadPoolExecutor(2) as pool:
        seen = sum(pool.map(use, CLIENTS, [6, 0]), Counter[str]())
    assert set(seen) == {"read", "stored"}, seen


def test_there_are_two_hosts_to_share_with() -> None:
    assert len(CLIENTS) >= 2


@pytest.fixture
def directory() -> Iterator[str]:
    """A directory on the share, removed afterwards."""
    path = f"{MOUNT_POINT}/fleet-test-{uuid.uuid4()}"
    shell(connect(CLIENTS[0]), 'mkdir "$1"', path)
    yield path
    shell(connect(CLIENTS[0]), 'rm -r "$1"', path)


def test_hosts_that_mark_the_share_at_the_same_time_agree_on_who_did(directory: str) -> None:
    """The roles of two hosts do, in every first run."""
    source, files, begin = inspect.getsource(nas_mount.make_once), 100, time.time() + 5
    arguments = ("make_at_once", source, directory, str(begin), str(files), "0.05")
    with ThreadPoolExecutor(len(CLIENTS)) as pool:
        seen = list(pool.map(lambda name: probe(connect(name), *arguments), CLIENTS))
    outcomes = sum(map(Counter, seen), Counter())
    assert outcomes == {"made": files, "there": files * (len(CLIENTS) - 1)}

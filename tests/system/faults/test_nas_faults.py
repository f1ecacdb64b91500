"""S1: a NAS that is dead, refuses, is full or was replaced holds nobody up; it comes back alone."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial

import pytest
from testinfra.host import Host

from tests.system.faults import site
from tests.system.fleet import fleet
from tests.system.fleet.fleet import connect, members, shell
from tests.system.fleet.nas import (
    CLIENTS,
    DEAD_SECONDS,
    MOUNT_POINT,
    SENTINEL,
    SERVER,
    SHARE,
    UNIT,
    beneath,
    kind,
    mounted,
    storage,
)

HOLDER = "fleet-test-holder"
# What a run may take longer because the NAS is dead: SSH gives it up once, and each client looks
# at the share once for its role and once for the table.
EXTRA_SECONDS = 60.0
REPAIR = "fleet-test-repair"


def share_comes_back() -> None:
    """Wait until every client sees the share again, which nobody has mounted for it."""
    for name in CLIENTS:
        fleet.wait_until(
            f"the share on {name}",
            partial(shell, connect(name), 'ls -A "$1"', MOUNT_POINT, seconds=30),
            60,
            lambda names: SENTINEL in names.splitlines(),
        )
        assert mounted(connect(name)) == kind(connect(name))


@pytest.fixture
def key() -> Iterator[str]:
    """A key for an object; the object is removed afterwards."""
    name = f"fleet-test-{uuid.uuid4()}"
    yield name
    storage(connect(CLIENTS[0]), "delete", name)


def usable(key: str) -> None:
    """What one client writes the other reads."""
    assert storage(connect(CLIENTS[0]), "store", key, "back") == {"result": None}
    assert storage(connect(CLIENTS[-1]), "retrieve", key) == {"result": "back"}


def timed(host: Host, script: str) -> tuple[int, float]:
    """Exit status of a script and its seconds."""
    started = time.monotonic()
    status = host.run("timeout 120 bash -c %s bash %s", script, MOUNT_POINT).rc
    return int(status), time.monotonic() - started


def hold_a_file_open(name: str) -> None:
    """Start a process that writes to the share for as long as that works, then goes on trying."""
    script = (
        "exec 3>>$0/.tmp-fleet-test-held;"
        " while :; do date >&3; cat $0/.tmp-fleet-test-held >/dev/null; sleep 0.1; done"
    )
    shell(
        connect(name),
        'systemd-run --quiet --collect --unit "$1" bash -c "$2" "$3"',
        *(HOLDER, script, MOUNT_POINT),
    )
    fleet.wait_until(
        f"a file held open on {name}",
        lambda: shell(connect(name), 'stat -c %s "$1/.tmp-fleet-test-held"', MOUNT_POINT),
        20,
        lambda size: int(size) > 0,
    )


def look_at_a_dead_share(name: str) -> None:
    """It fails in a bounded time, nothing lands on the local disk, the rest of the host runs."""
    host = connect(name)
    scripts = {
        "df": "df >/dev/null",
        "ls /mnt": 'ls -l "$(dirname "$1")"',
        "ls": 'ls -A "$1"',
        "cp": 'cp /etc/hostname "$1/fleet-test-copy"',
        "mkdir": 'mkdir "$1/fleet-test-directory"',
    }
    # At once: the first look must not have cleared the way for the others.
    with ThreadPoolExecutor(len(scripts)) as pool:
        found = dict(zip(scripts, pool.map(partial(timed, host), scripts.values()), strict=True))
    for what, (status, seconds) in found.items():
        assert seconds < DEAD_SECONDS, f"{name}: {what} waited {seconds:.0f} s"
        if what in ("ls", "cp", "mkdir"):
            assert status != 0, f"{name}: {what} worked on a share that is away"
    started = time.monotonic()
    refused = storage(host, "store", "fleet-test-dead", "x")
    assert refused.get("error") in {"NASUnavailableError", "NASError"}, refused
    assert time.monotonic() - started < DEAD_SECONDS
    assert beneath(host) == ["0 root"]
    assert shell(host, "systemctl is-active prime-spark-telemetry.service") == "active"
    # A process in the middle of it can be ended.
    shell(host, f"systemctl kill --signal=KILL {HOLDER}.service || true")
    fleet.wait_until(
        f"the end of what held a file open on {name}",
        lambda: shell(host, f"systemctl is-active {HOLDER}.service || true"),
        DEAD_SECONDS,
        lambda seen: seen != "active",
    )


def test_a_dead_nas_holds_nobody_up_and_comes_back(key: str) -> None:
    for name in CLIENTS:
        hold_a_file_open(name)
    fleet.lab("cut", SERVER)
    try:
        with ThreadPoolExecutor(len(CLIENTS)) as pool:
            list(pool.map(look_at_a_dead_share, CLIENTS))
        # The long form runs everything, the short one what has to do with the NAS and the table.
        arguments = [] if fleet.FULL else ["--tags", "nas,verify"]
        run = site.run(*arguments)
        for name in CLIENTS:
            assert beneath(connect(name)) == ["0 root"]
    finally:
        fleet.lab("heal", SERVER)
        fleet.disconnect(SERVER)
        for name in CLIENTS:
            with suppress(AssertionError):
                shell(connect(name), f"systemctl kill --signal=KILL {HOLDER}.service || true")
    share_comes_back()
    usable(key)
    shell(connect(SERVER), 'rm -f "$1/.tmp-fleet-test-held"', SHARE)
    lines = [line for line in run.output.splitlines() if "does not answer; " in line]
    assert len(lines) == len(CLIENTS), run.output[-4000:]
    assert all("deferred" in line and MOUNT_POINT in line for line in lines)
    # The table names the share that is away, which is no fault of a managed host.
    for name in CLIENTS:
        assert f"deferred {name}: {MOUNT_POINT} is away" in run.output
    assert "WRONG" not in run.output
    assert run.status == 4, "only the NAS itself was not reached"
    if fleet.FULL:
        assert run.seconds - site.run().seconds < EXTRA_SECONDS
    assert {run.recap[name]["changed"] for name in members("managed")} == {0}
    assert {run.recap[name]["unreachable"] for name in members("managed")} == {0}


@contextmanager
def without_sshd(repair: str, break_it: str) -> Iterator[None]:
    """Change the NAS's sshd for a while, over a connection that outlives that.

    A timer on the NAS undoes it should this process not live to do so.
    """
    server = connect(SERVER)
    shell(
        server,
        'systemd-run --quiet --collect --unit "$1" --on-active=120 bash -c "$2"',
        *(REPAIR, repair),
    )
    try:
        shell(server, break_it)
        # Afterwards: what watches the share would mount it again over the sshd of before.
        for name in CLIENTS:
            shell(connect(name), f"systemctl stop {UNIT}.mount")
        yield
    finally:
        shell(server, repair)
        shell(server, f"systemctl stop {REPAIR}.timer")


sshfs_only = pytest.mark.skipif(
    "kind(connect(CLIENTS[0])) != 'fuse.sshfs'", reason="the share is not mounted by SSH"
)


@sshfs_only
def test_a_nas_that_refuses_connections_holds_nobody_up(key: str) -> None:
    with without_sshd("systemctl start ssh.service", "systemctl stop ssh.service"):
        for name in CLIENTS:
            host = connect(name)
            status, seconds = timed(host, 'ls -A "$1"')
            assert status != 0
            assert seconds < DEAD_SECONDS
            assert storage(host, "store", key, "x").get("error") == "NASUnavailableError"
            # An impatient program: systemd by itself allows five starts within ten seconds.
            assert timed(host, 'for _ in {1..12}; do ls -A "$1" && exit; done; exit 9')[0] == 9
            assert beneath(host) == ["0 root"]
        run = site.run("--tags", "nas", "--limit", ",".join(CLIENTS))
    assert run.status == 0, run.output[-4000:]
    assert run.output.count("does not answer; ") == len(CLIENTS)
    share_comes_back()
    usable(key)


@sshfs_only
def test_a_replaced_nas_is_refused_in_clear_words(key: str) -> None:
    # Another host key, for new connections.
    drop_in = "/etc/ssh/sshd_config.d/10-fleet-test.conf"
    other = "/etc/ssh/fleet-test-key"
    name = CLIENTS[-1]
    with without_sshd(
        f"rm -f {drop_in} {other} {other}.pub; systemctl restart ssh.service",
        f"ssh-keygen -q -t ed25519 -N '' -f {other} && echo HostKey {other} >{drop_in}"
        " && systemctl restart ssh.service",
    ):
        shown = shell(connect(SERVER), f"ssh-keygen -l -f {other}").split()[1]
        assert timed(connect(name), 'ls -A "$1"')[0] != 0
        assert beneath(connect(name)) == ["0 root"]
        run = site.run("--tags", "nas", "--limit", name)
    assert run.recap[name]["failed"] == 1, run.output[-4000:]
    (line,) = [line for line in run.output.splitlines() if line.startswith("fatal: ")]
    assert "nas_host_keys" in line
    assert shown in line
    share_comes_back()
    usable(key)


@sshfs_only
def test_a_client_that_the_nas_does_not_know_is_told_what_to_run() -> None:
    """With --limit the server is another host: it is not changed, and the run says so."""
    name = CLIENTS[-1]
    known = f"/etc/ssh/prime-spark-nas/{name}.pub"
    shell(connect(SERVER), 'mv "$1" "$1.fleet-test"', known)
    try:
        shell(connect(name), f"systemctl stop {UNIT}.mount")
        run = site.run("--tags", "nas", "--limit", name)
        assert set(run.recap) == {name}
        assert run.recap[name]["failed"] == 1, run.output[-4000:]
        (line,) = [line for line in run.output.splitlines() if line.startswith("fatal: ")]
        assert f"--tags nas --limit {name},{SERVER}" in line
        assert not connect(SERVER).file(known).exists
        # The command that it names.
        run = site.run("--tags", "nas", "--limit", f"{name},{SERVER}")
        assert run.status == 0, run.output[-4000:]
        assert run.recap[SERVER]["changed"] == 1
    finally:
        shell(
            connect(SERVER), '[ -e "$1" ] || mv "$1.fleet-test" "$1"; rm -f "$1.fleet-test"', known
        )
    share_comes_back()


def test_a_full_nas_gives_an_error_and_keeps_no_half_object(key: str) -> None:
    server, client = connect(SERVER), connect(CLIENTS[0])
    shell(
        server,
        """
        set -e
        gid=$(stat -c %g "$1")
        mount -t tmpfs -o "size=4m,mode=2770,gid=$gid" fleet-test "$1"
        touch "$1/$2"
        """,
        *(SHARE, SENTINEL),
    )
    try:
        assert storage(client, "store_bytes", key, "1000000") == {"result": None}
        refused = storage(client, "store_bytes", key, "8000000")
        assert refused.get("error") == "NASError", refused
        assert "full" in refused["text"]
        # The object that was there is still there, whole.
        listing = shell(server, "find \"$1\" -type f -printf '%P %s\\n'", SHARE).splitlines()
        assert sorted(listing) == [f"{SENTINEL} 0", f"{key} 1000000"]
        status, seconds = timed(client, 'head -c 8000000 /dev/zero >"$1/fleet-test-large"')
        assert status != 0
        assert seconds < DEAD_SECONDS
    finally:
        # Whoever has it open keeps it; new looks see the share.
        shell(server, 'umount --lazy "$1"', SHARE)
        for name in CLIENTS:
            shell(connect(name), f"systemctl stop {UNIT}.mount")
    share_comes_back()
    usable(key)

"""The lab survives what can happen to it. `pytest -m lifecycle tests/system/lab`.

These tests run on a lab of their own: another state directory (with the real lab's bases), another
runtime directory and so another lock and cgroup parent. The real lab may run beside it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab import common

pytestmark = pytest.mark.lifecycle

HOST = "nas-1"
STATE = common.STATE.with_name("prime-spark-lab-test")
RUNTIME = common.RUNTIME.with_name("prime-spark-lab-test")


class Checkout:
    """The lab's command line in a checkout."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(
        self, *arguments: str, check: bool = True, ci: bool = False
    ) -> subprocess.CompletedProcess[str]:
        environment = {key: value for key, value in os.environ.items() if key != "CI"}
        environment |= {"PRIME_SPARK_LAB_DIR": str(STATE), "PRIME_SPARK_LAB_RUN": str(RUNTIME)}
        if ci:
            environment["CI"] = "true"
        result = subprocess.run(
            [sys.executable, "-m", "lab", *arguments],
            cwd=self.path,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        if check:
            assert result.returncode == 0, result.stdout + result.stderr
        return result

    def up(self, *arguments: str) -> None:
        """Boot the one host that these tests need."""
        self("up", "--no-images", *arguments, HOST)

    def running(self) -> bool:
        """Whether the lab's lock is held."""
        return bool(json.loads(self("status", "--json").stdout)["running"])

    def host(self) -> dict[str, Any]:
        """The host's row."""
        row: dict[str, Any] = json.loads(self("status", "--json").stdout)["hosts"][HOST]
        return row


def owner() -> common.Owner:
    """The lab's record."""
    record: common.Owner = json.loads((RUNTIME / "owner.json").read_text())
    return record


def parents() -> list[Path]:
    """The lab's cgroups."""
    found = Path("/sys/fs/cgroup").glob(f"**/{RUNTIME.name}")
    return sorted(path for path in found if path.is_dir())


def members() -> set[int]:
    """Every process in the lab's cgroups."""
    pids: set[int] = set()
    for parent in parents():
        for path in parent.rglob("cgroup.procs"):
            with contextlib.suppress(OSError):
                pids.update(map(int, path.read_text().split()))
    return pids


def loop_devices() -> str:
    """The loop devices over the lab's disks."""
    command = ["losetup", "--associated", str(STATE / "disks.btrfs")]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def disks(lab: Checkout) -> list[str]:
    """The hosts that have a disk, while the lab is down."""
    names: list[str] = json.loads(lab("status", "--json").stdout)["disks"]
    return names


def wait_until_dead(lab: Checkout) -> None:
    """Wait for the end of a lab whose processes were killed."""
    deadline = time.monotonic() + 30
    while lab.running() or members() or loop_devices():
        assert time.monotonic() < deadline, f"still there: {members()} {loop_devices()}"
        time.sleep(0.1)


@pytest.fixture(scope="module", autouse=True)
def state() -> Iterator[None]:
    """A state directory that borrows the real lab's bases; removed afterwards."""
    if os.geteuid() != 0:
        pytest.fail("these tests need root")
    if not (common.CACHE / "bases").is_dir():
        pytest.fail("these tests need the lab's bases: `make lab-up` once")
    first = Checkout(common.CHECKOUT)
    if STATE.exists():
        first("destroy", "--takeover")
    STATE.mkdir(exist_ok=True)
    if not (STATE / "cache").is_symlink():
        (STATE / "cache").symlink_to(common.CACHE)
    yield
    first("destroy", "--takeover")
    (STATE / "cache").unlink()
    shutil.rmtree(STATE)
    shutil.rmtree(RUNTIME)


@pytest.fixture
def lab() -> Checkout:
    """This checkout, with its lab up."""
    checkout = Checkout(common.CHECKOUT)
    checkout.up("--takeover")
    return checkout


@pytest.fixture
def other(tmp_path: Path) -> Checkout:
    """A second checkout."""
    for part in ("lab", "plugins/module_utils"):
        shutil.copytree(common.CHECKOUT / part, tmp_path / part)
    return Checkout(tmp_path)


def test_up_is_idempotent(lab: Checkout) -> None:
    before, boots = owner(), lab.host()["boots"]
    lab.up()
    assert owner() == before
    assert lab.host()["boots"] == boots


@pytest.mark.parametrize("victim", ["outer", "inner", "child"])
def test_up_after_kill_9(lab: Checkout, victim: str) -> None:
    lab("ssh", HOST, f"echo {victim} > /root/kept && sync")
    record = owner()
    pids = {"outer": record["outer_pid"], "inner": record["pid"]}
    if victim == "child":
        children = Path(f"/proc/{record['pid']}/task/{record['pid']}/children").read_text()
        pids["child"] = int(children.split()[0])
    os.kill(pids[victim], signal.SIGKILL)
    wait_until_dead(lab)
    lab.up()
    assert owner()["pid"] != record["pid"]
    assert lab("ssh", HOST, "cat /root/kept").stdout == f"{victim}\n"


def test_up_after_everything_was_killed_with_leftovers(lab: Checkout) -> None:
    record = owner()
    for pid in members() | {record["outer_pid"], record["pid"]}:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    wait_until_dead(lab)
    assert (RUNTIME / "owner.json").exists(), "nothing cleaned up after the dead"
    assert parents(), "its cgroups are still there"
    for parent in parents():
        (parent / "left-over/deep").mkdir(parents=True, exist_ok=True)
    (RUNTIME / "control.sock").touch()
    lab.up()
    assert lab("ssh", HOST, "hostname").stdout == f"{HOST}\n"
    assert not any((parent / "left-over").exists() for parent in parents())


def test_stale_record_never_costs_a_stranger_its_life(lab: Checkout) -> None:
    lab("down")
    with subprocess.Popen(["sleep", "600"]) as stranger:
        record = common.Owner(
            checkout="/nowhere", pid=stranger.pid, outer_pid=stranger.pid, started=0
        )
        (RUNTIME / "owner.json").write_text(json.dumps(record))
        try:
            lab.up()
            assert stranger.poll() is None
        finally:
            stranger.kill()


def test_second_checkout_is_refused_while_the_first_lives(lab: Checkout, other: Checkout) -> None:
    for arguments in (["up", "--no-images", HOST], ["down"], ["destroy"], ["reboot", HOST]):
        refused = other(*arguments, check=False)
        assert refused.returncode == 1, arguments
        assert str(lab.path) in refused.stderr
        assert str(owner()["pid"]) in refused.stderr
        assert "--takeover" in refused.stderr
    assert owner()["checkout"] == str(lab.path)
    assert lab.host()["state"] == "running"


def test_takeover_of_a_living_lab(lab: Checkout, other: Checkout) -> None:
    lab("ssh", HOST, "echo disk > /root/kept")
    other.up("--takeover")
    assert owner()["checkout"] == str(other.path)
    assert other("ssh", HOST, "cat /root/kept").stdout == "disk\n"
    assert lab("up", "--no-images", HOST, check=False).returncode == 1
    lab("up", "--no-images", HOST, ci=True)
    assert owner()["checkout"] == str(lab.path)


def test_takeover_of_a_dead_lab(lab: Checkout, other: Checkout) -> None:
    os.kill(owner()["pid"], signal.SIGKILL)
    wait_until_dead(lab)
    other.up()
    assert owner()["checkout"] == str(other.path)
    other("down")


def test_reboot_gives_a_new_boot(lab: Checkout) -> None:
    boot_id = lab("ssh", HOST, "cat /proc/sys/kernel/random/boot_id").stdout
    lab("ssh", HOST, "ip link add left type bridge && ip route add 10.99.0.0/24 dev eth0")
    lab("reboot", HOST)
    assert lab("ssh", HOST, "cat /proc/sys/kernel/random/boot_id").stdout != boot_id
    assert "left" not in lab("ssh", HOST, "ip -brief link").stdout
    assert "10.99.0.0" not in lab("ssh", HOST, "ip route").stdout


def test_reboot_from_inside(lab: Checkout) -> None:
    boots = lab.host()["boots"]
    lab("console", HOST, "systemctl", "reboot")
    deadline = time.monotonic() + 60
    while lab.host()["boots"] == boots:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    lab.up()


def test_cut_and_heal(lab: Checkout) -> None:
    lab("cut", HOST)
    assert lab.host()["state"] == "cut"
    assert lab("console", HOST, "cat", "/sys/class/net/eth0/carrier").stdout.strip() == "0"
    lab("heal", HOST)
    assert lab("ssh", HOST, "cat", "/sys/class/net/eth0/carrier").stdout.strip() == "1"


def test_down_leaves_nothing(lab: Checkout) -> None:
    assert parents() and members()
    pid = owner()["pid"]
    lab("down")
    assert parents() == []
    assert not Path(f"/proc/{pid}").exists()
    assert not (RUNTIME / "control.sock").exists()
    assert HOST in disks(lab)
    assert common.mounts_below(STATE) == []
    assert loop_devices() == ""


def test_restore_brings_back_the_host_that_was_saved(lab: Checkout) -> None:
    def content() -> str:
        return lab("ssh", HOST, "cat /root/kept").stdout

    lab("ssh", HOST, "echo saved > /root/kept")
    (STATE / "secrets").mkdir(exist_ok=True)
    (STATE / "secrets/vault.yml").write_text("of the snapshot")
    identity = (STATE / "ssh/known_hosts").read_text()
    lab("save", "fleet", "--key", "right")
    assert content() == "saved\n", "the host runs on"
    lab("ssh", HOST, "echo later > /root/kept && sync")
    boots = lab.host()["boots"]
    for arguments in (["fleet", "--key", "wrong"], ["other", "--key", "right"], ["other"]):
        refused = lab("restore", "--no-images", *arguments, check=False)
        assert refused.returncode == 3, refused.stderr
        assert len(refused.stderr.splitlines()) == 1
    assert (content(), lab.host()["boots"]) == ("later\n", boots), "nothing has changed"
    lab("restore", "--no-images", "fleet", "--key", "right")
    assert content() == "saved\n"
    assert list(json.loads(lab("snapshots", "--json").stdout)) == ["fleet"]

    # With its keys and secrets, also when the fleet and its own are gone.
    lab("destroy", "--keep-snapshots")
    assert not (STATE / "ssh").exists() and not (STATE / "secrets").exists()
    assert disks(lab) == []
    assert lab("restore", "--no-images", "other", check=False).returncode == 3
    assert not lab.running(), "a lab that was down stays down"
    lab("restore", "--no-images", "fleet")
    assert (STATE / "ssh/known_hosts").read_text() == identity
    assert (STATE / "secrets/vault.yml").read_text() == "of the snapshot"
    assert content() == "saved\n"
    lab("forget", "fleet")
    assert lab("forget", "fleet", check=False).returncode == 3


def test_destroy_refuses_while_something_is_mounted(lab: Checkout) -> None:
    lab("down")
    script = 'mount -t tmpfs none "$1" && touch "$1/kept" && cd "$2" && shift 2 && "$@"; '
    script += 'status=$?; [ -e "$0/kept" ] || exit 99; exit $status'
    target = STATE / "disks"
    command = [sys.executable, "-m", "lab", "destroy"]
    result = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, str(target), str(target), str(lab.path)]
        + command,
        env={
            **os.environ,
            "PRIME_SPARK_LAB_DIR": str(STATE),
            "PRIME_SPARK_LAB_RUN": str(RUNTIME),
        },
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1, result.stderr
    assert f"{target} is mounted" in result.stderr
    assert HOST in disks(lab)


def test_destroy_of_the_disks_makes_the_same_hosts_bare(lab: Checkout) -> None:
    before = (STATE / "ssh/known_hosts").read_text()
    lab("ssh", HOST, "touch /root/kept")
    lab("destroy", "--disks")
    assert disks(lab) == []
    lab("up", "--no-images", HOST)
    assert (STATE / "ssh/known_hosts").read_text() == before
    assert lab("ssh", HOST, "ls /root").stdout == ""


def test_destroy_removes_disks_and_keys_but_no_borrowed_cache(lab: Checkout) -> None:
    lab("destroy")
    assert not (STATE / "disks").exists()
    assert not (STATE / "disks.btrfs").exists()
    assert not (STATE / "ssh").exists()
    assert (STATE / "cache").is_symlink()
    assert (common.CACHE / "bases").is_dir()

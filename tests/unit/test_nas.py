"""NAS: protocol choice, mount settings, and the protection of the bare mount point."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.prime_spark.fleet.plugins.filter import nas as filters
from ansible_collections.prime_spark.fleet.plugins.module_utils import kernel
from ansible_collections.prime_spark.fleet.plugins.modules import host_health as health
from ansible_collections.prime_spark.fleet.plugins.modules import nas_keys as keys
from ansible_collections.prime_spark.fleet.plugins.modules import nas_mount as mount
from ansible_collections.prime_spark.fleet.plugins.modules import nas_probe as probe

ROOT = Path(__file__).parents[2]
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5"


def settings(protocol: str, **changes: Any) -> dict[str, Any]:
    arguments = {
        "server": "10.0.0.9",
        "share": "/share",
        "user": "spark-nas",
        "gid": 1490,
        "directory": "/etc/prime-spark/nas",
        "timeout": 5,
    } | changes
    made: dict[str, Any] = filters.nas_mount_settings(protocol, **arguments)
    return made


@pytest.mark.parametrize(
    ("protocol", "what", "fstype", "port"),
    [
        ("nfs4", "10.0.0.9:/share", "nfs4", 2049),
        ("cifs", "//10.0.0.9/share", "cifs", 445),
        ("sshfs", "spark-nas@10.0.0.9:/share", "fuse.sshfs", 22),
    ],
)
def test_settings(protocol: str, what: str, fstype: str, port: int) -> None:
    made = settings(protocol)
    assert (made["what"], made["type"], made["port"]) == (what, fstype, port)
    options = made["options"].split(",")
    assert {"_netdev", "nofail", "nosuid", "nodev"} <= set(options)
    # No password and no key, only the names of their files.
    assert "password=" not in made["options"]


def test_every_protocol_gives_up_on_a_dead_server() -> None:
    assert "soft" in settings("nfs4")["options"].split(",")
    assert "soft" in settings("cifs")["options"].split(",")
    assert "ServerAliveInterval=5" in settings("sshfs")["options"]
    assert "reconnect" not in settings("sshfs")["options"]
    assert "direct_io" in settings("sshfs")["options"].split(",")


def test_sshfs_trusts_pinned_keys_alone() -> None:
    options = settings("sshfs")["options"]
    assert "StrictHostKeyChecking=yes" in options
    assert "GlobalKnownHostsFile=/dev/null" in options


@pytest.mark.parametrize("bad", [("share", "share"), ("protocol", "ftp")])
def test_wrong_settings_are_refused(bad: tuple[str, str]) -> None:
    with pytest.raises(AnsibleFilterError, match=bad[1]):
        if bad[0] == "protocol":
            settings(bad[1])
        else:
            settings("nfs4", **{bad[0]: bad[1]})


@pytest.mark.parametrize(
    "line", [KEY, f"nas,192.0.2.1 {KEY}", f"|1|hash= {KEY} comment", f"[nas]:22 {KEY}"]
)
def test_pinned_keys_become_those_of_the_address(line: str) -> None:
    assert filters.nas_known_hosts([line, "", "# note"], "10.0.0.9") == f"10.0.0.9 {KEY}\n"


@pytest.mark.parametrize("line", ["nonsense", "nas ssh-ed25519"])
def test_a_wrong_host_key_is_refused(line: str) -> None:
    with pytest.raises(AnsibleFilterError, match="nas_host_keys"):
        filters.nas_known_hosts([line], "10.0.0.9")


@pytest.mark.parametrize(
    ("path", "unit"),
    [
        ("/mnt/nas", "mnt-nas"),
        ("/mnt/nas/", "mnt-nas"),
        ("/srv/my-nas", "srv-my\\x2dnas"),
        ("/.nas/a b", "\\x2enas-a\\x20b"),
    ],
)
def test_unit_names(path: str, unit: str) -> None:
    assert filters.nas_unit(path) == unit
    if shutil.which("systemd-escape"):
        escaped = subprocess.run(
            ["systemd-escape", "--path", path], capture_output=True, text=True, check=True
        )
        assert escaped.stdout.strip() == unit


@pytest.mark.parametrize("path", ["mnt/nas", "/", "/mnt/../nas"])
def test_a_wrong_mount_point_is_refused(path: str) -> None:
    with pytest.raises(AnsibleFilterError, match="nas_mount_point"):
        filters.nas_unit(path)


def test_the_kernel_decides_what_auto_means() -> None:
    assert kernel.has_filesystem("nodev\tsysfs\n\text4\nnodev\tnfs4\n", "nfs4")
    assert not kernel.has_filesystem("nodev\tnfs\nnodev\tnfsd\n", "nfs4")
    assert probe.choose("auto", "client", True)[0] == "nfs4"
    assert probe.choose("auto", "client", False) == ("sshfs", "the kernel has no NFSv4 client")
    assert probe.choose("cifs", "client", True)[0] == "cifs"


def test_a_key_is_made_once_and_whole(tmp_path: Path) -> None:
    if not shutil.which("ssh-keygen"):
        pytest.skip("no ssh-keygen")
    path = tmp_path / "nas" / "id"
    probe.make_key(str(path), "nas@host")
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.with_suffix(".pub").read_text().startswith("ssh-ed25519 ")
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["id", "id.pub"]


MOUNTINFO = """\
22 1 8:1 / / rw - ext4 /dev/sda1 rw
30 22 0:40 / /mnt/nas rw - autofs systemd-1 rw
31 30 0:41 / /mnt/nas rw - fuse.sshfs spark-nas@10.0.0.9:/share rw
32 22 0:42 / /mnt/my\\040nas rw - nfs4 10.0.0.9:/my\\040share rw
"""


def test_the_mount_table_shows_the_share_and_not_the_automount() -> None:
    seen = mount.mounted_at(MOUNTINFO, "/mnt/nas")
    assert seen == ("fuse.sshfs", "spark-nas@10.0.0.9:/share")
    assert mount.mounted_at(MOUNTINFO, "/mnt/my nas") == ("nfs4", "10.0.0.9:/my share")
    waiting = "".join(MOUNTINFO.splitlines(keepends=True)[:2])
    assert mount.mounted_at(waiting, "/mnt/nas") is None


def test_a_look_that_hangs_is_left_behind() -> None:
    started = time.monotonic()
    with pytest.raises(mount.TimedOutError):
        mount.in_child(lambda: time.sleep(60), 0.2)
    assert time.monotonic() - started < 10


def test_the_error_of_a_look_arrives(tmp_path: Path) -> None:
    assert mount.in_child(lambda: {"a": 1}, 10) == {"a": 1}
    with pytest.raises(FileNotFoundError):
        mount.in_child(lambda: os.listdir(tmp_path / "gone"), 10)
    with pytest.raises(mount.NasError, match="ZeroDivisionError"):
        mount.in_child(lambda: 1 // 0, 10)


@pytest.mark.skipif(os.geteuid() != 0, reason="owner and mode of the mount point need root")
def test_the_bare_mount_point_is_protected_once(tmp_path: Path) -> None:
    bare = tmp_path / "nas"
    assert mount.protect(str(bare), True)["changes"] == ["make the mount point"]
    assert not bare.exists()
    try:
        assert mount.protect(str(bare), False)["changes"] == ["make the mount point"]
        assert bare.stat().st_mode & 0o7777 == 0
        assert mount.protect(str(bare), True)["changes"] == []
        assert mount.protect(str(bare), False)["changes"] == []
    finally:
        assert mount.unprotect(str(bare))
    assert not bare.exists()


def test_keys_of_clients_are_kept_unless_their_host_left(tmp_path: Path) -> None:
    directory = tmp_path / "keys"
    hosts = ["a", "b", "c"]
    assert keys.synchronize(str(directory), {"a": KEY}, hosts, True) == ["accept a"]
    assert not directory.exists()
    assert keys.synchronize(str(directory), {"a": KEY, "b": KEY}, hosts, False) == [
        *("accept a", "accept b")
    ]
    assert (directory / "a.pub").read_text() == f"restrict {KEY}\n"
    # A run with --limit knows its own hosts' keys alone.
    assert keys.synchronize(str(directory), {"a": KEY}, hosts, False) == []
    (directory / ".new-half").write_text("")
    assert keys.synchronize(str(directory), {"a": KEY}, ["a"], False) == [
        *("remove .new-half", "remove b.pub")
    ]
    assert [path.name for path in directory.iterdir()] == ["a.pub"]


def test_a_key_that_check_mode_did_not_make_is_predicted(tmp_path: Path) -> None:
    assert len(keys.synchronize(str(tmp_path), {"a": ""}, ["a"], True)) == 1
    assert list(tmp_path.iterdir()) == []


def test_the_keys_of_a_run_are_those_of_its_sshfs_clients() -> None:
    probes = {
        "a": {"__nas_probe": {"protocol": "sshfs", "public_key": KEY}},
        "b": {"__nas_probe": {"protocol": "nfs4", "public_key": ""}},
        "c": {},
        "d": {"__nas_probe": {"protocol": "sshfs", "public_key": ""}},
    }
    assert filters.nas_client_keys(list(probes), probes) == {"a": KEY, "d": ""}


def test_a_refusal_says_what_is_wrong_and_what_to_do() -> None:
    what = "spark-nas@10.0.0.9:/share"
    changed = (
        "@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\nThe fingerprint for the ED25519 key "
        "sent by the remote host is\nSHA256:abc/DEF+1.\nHost key verification failed.\n"
    )
    said = mount.ssh_refusal(changed, what, "hint")
    assert "nas_host_keys" in said and "lacks, SHA256:abc/DEF+1\n" in said
    assert "hint" not in said
    unknown = mount.ssh_refusal("No key is known.\nHost key verification failed.\n", what, "")
    assert "nas_host_keys" in unknown
    denied = f"{what}: Permission denied (publickey).\n"
    assert mount.ssh_refusal(denied, what, "do this").endswith("key of this host\ndo this")
    assert mount.ssh_refusal("Connection refused", what, "hint") is None


def test_the_diagnosis_logs_in_as_the_mount_does() -> None:
    made = settings("sshfs")
    options = [word for word in made["diagnose"] if "=" in word]
    assert set(options) < set(made["options"].split(","))
    assert {"StrictHostKeyChecking=yes", "BatchMode=yes"} <= set(options)
    assert settings("nfs4")["diagnose"] == []


@pytest.mark.parametrize(
    ("what", "kind", "server"),
    [
        ("spark-nas@10.0.0.9:/share", "fuse.sshfs", ("10.0.0.9", 22)),
        ("10.0.0.9:/share", "nfs4", ("10.0.0.9", 2049)),
        ("//nas.home/share", "cifs", ("nas.home", 445)),
        ("", "", ("", 0)),
    ],
)
def test_verify_knows_whose_share_it_is(what: str, kind: str, server: tuple[str, int]) -> None:
    assert health.share_server(what, kind) == server


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("OpenSSH_10.0p2 Debian-7, OpenSSL 3.5.1 1 Jul 2025", True),
        ("OpenSSH_9.8p1, OpenSSL 3.0.15", True),
        ("OpenSSH_9.2p1 Debian-2+deb12u7, OpenSSL 3.0.17", False),
        ("", False),
    ],
)
def test_an_ssh_server_that_locks_addresses_out_is_known_by_its_version(
    version: str, expected: bool
) -> None:
    assert probe.penalizes(version) is expected

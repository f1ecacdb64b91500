"""What a fresh image lacks: changes happen once, and in check mode not at all."""

from __future__ import annotations

import os
import pwd
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible_collections.prime_spark.fleet.plugins.module_utils import past
from ansible_collections.prime_spark.fleet.plugins.modules import host_bootstrap as MODULE

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIabc me@laptop"
PARAMS: dict[str, Any] = {
    "user": "prime",
    "keys": [KEY],
    "hostname": "spark-agent-1",
    "timezone": "Etc/UTC",
    "journal_mb": 200,
    "zram_percent": 50,
}


def bootstrap(check: bool = False, **params: Any) -> MODULE.Bootstrap:
    module: Any = SimpleNamespace(params={**PARAMS, **params}, check_mode=check)
    return MODULE.Bootstrap(module)


def test_a_key_is_authorized_once_and_others_stay(tmp_path: Path) -> None:
    me = pwd.getpwuid(os.getuid()).pw_name
    file = tmp_path / ".ssh" / "authorized_keys"
    said = bootstrap(check=True)
    said.authorize(me, str(tmp_path))
    assert said.changes == [f"authorize 1 keys of {me}"] and not file.exists()
    bootstrap().authorize(me, str(tmp_path))
    assert file.read_text() == f"{KEY}\n" and file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700
    file.write_text(f"another\n{KEY.rsplit(' ', 1)[0]} another comment")
    again = bootstrap()
    again.authorize(me, str(tmp_path))
    assert again.changes == []
    more = bootstrap(keys=["ssh-ed25519 BBBB"])
    more.authorize(me, str(tmp_path))
    assert file.read_text().splitlines()[0::2] == ["another", "ssh-ed25519 BBBB"]


@pytest.mark.parametrize("before", [f"#{KEY}", f'command="true" {KEY}'])
def test_a_key_that_may_not_log_in_freely_is_authorized(before: str, tmp_path: Path) -> None:
    me = pwd.getpwuid(os.getuid()).pw_name
    file = tmp_path / ".ssh" / "authorized_keys"
    file.parent.mkdir()
    file.write_text(f"{before}\n")
    bootstrap().authorize(me, str(tmp_path))
    assert file.read_text() == f"{before}\n{KEY}\n"


def test_keys_that_cannot_be_read_are_not_replaced(tmp_path: Path) -> None:
    me = pwd.getpwuid(os.getuid()).pw_name
    file = tmp_path / ".ssh" / "authorized_keys"
    file.parent.mkdir()
    file.write_bytes(b"ssh-ed25519 CCCC home\xe9\n")
    with pytest.raises(UnicodeDecodeError):
        bootstrap().authorize(me, str(tmp_path))
    assert file.read_bytes() == b"ssh-ed25519 CCCC home\xe9\n"


def test_a_file_is_written_where_it_differs(tmp_path: Path) -> None:
    path = tmp_path / "conf.d" / "a.conf"
    assert not bootstrap(check=True).write(str(path), "a\n", 0o644) and not path.exists()
    assert bootstrap().write(str(path), "a\n", 0o644)
    assert not bootstrap().write(str(path), "a\n", 0o644)
    path.chmod(0o600)
    assert bootstrap().write(str(path), "a\n", 0o644) and path.stat().st_mode & 0o777 == 0o644


def test_accounting_of_memory_is_switched_on_where_the_firmware_switches_it_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = tmp_path / "cmdline.txt"
    line.write_text("root=x rootwait\n")
    monkeypatch.setattr(past, "COMMAND_LINES", (str(line),))
    real = past.read
    firmware = "cgroup_disable=memory root=x"
    monkeypatch.setattr(past, "read", lambda p: firmware if p == "/proc/cmdline" else real(p))
    for changes in (1, 0):
        step = bootstrap()
        step.memory()
        assert len(step.changes) == changes and step.reboot
    assert line.read_text() == "root=x rootwait cgroup_enable=memory cgroup_memory=1\n"


@pytest.mark.parametrize(
    ("params", "sentence"),
    [
        ({"user": "Prime Spark"}, "is no name of a user"),
        ({"hostname": "192.168.1.92"}, "is no name of a host"),
        ({"keys": []}, "no public key to authorize"),
    ],
)
def test_what_cannot_be_right_is_refused_before_any_change(
    params: dict[str, Any], sentence: str
) -> None:
    wrong = bootstrap(**params)
    with pytest.raises(MODULE.BootstrapError, match=sentence):
        wrong.all()
    assert wrong.changes == []


def test_one_program_that_keeps_the_clock_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"sudo": "1", "tzdata": "1", "chrony": "4"}
    monkeypatch.setattr(past, "installed", lambda names: there)
    monkeypatch.setattr(MODULE, "wants_zram", lambda params: False)
    assert MODULE.missing_packages(PARAMS) == []
    del there["chrony"]
    assert MODULE.missing_packages(PARAMS) == ["systemd-timesyncd"]

"""The way back from a change of the VPN: what is kept, the timer that returns to it, its end.

Before a change that could cut the host off, everything that the change touches is kept in
``DIRECTORY`` together with a program that puts it back. A timer of systemd starts that program, so
that neither this module nor its connection has to live; a unit enabled for the boot starts it when
the host goes down in between. Whoever confirms the change removes all of it.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from contextlib import AbstractContextManager
from typing import Any

from ansible_collections.prime_spark.fleet.plugins.module_utils.atomic import replace_file
from ansible_collections.prime_spark.fleet.plugins.module_utils.lock import exclusive
from ansible_collections.prime_spark.fleet.plugins.module_utils.process import attempt
from ansible_collections.prime_spark.fleet.plugins.module_utils.wireguard import (
    WireGuardError,
    read_text,
    run,
)

DIRECTORY = "/etc/wireguard/revert"
STATE = f"{DIRECTORY}/state.json"
REVERTED = "/etc/wireguard/reverted.json"
LOCK = "/run/lock/prime-spark-vpn.lock"
UNIT = "prime-spark-vpn-revert"
BOOT_UNIT = "/etc/systemd/system/prime-spark-vpn-revert-at-boot.service"
BOOT_LINK = "/etc/systemd/system/multi-user.target.wants/prime-spark-vpn-revert-at-boot.service"
# What config_tree wrote for the role: the guard of the VPN address belongs to that address.
TREE_RECORD = "/var/lib/prime-spark/trees/wireguard.json"
FRESH_SECONDS = 180

BOOT_UNIT_TEXT = f"""\
# Written by the module wireguard_interface; gone once the change is confirmed.
[Unit]
Description=Bring the VPN back to its last confirmed state
DefaultDependencies=no
After=sysinit.target
Before=network-pre.target prime-spark-vpn-guard.service wg-quick@{{name}}.service
Before=shutdown.target
Conflicts=shutdown.target
ConditionPathExists={STATE}

[Service]
Type=oneshot
ExecStart=/usr/bin/python3 -IS {DIRECTORY}/revert boot

[Install]
WantedBy=multi-user.target
"""


def locked(seconds: float = 60) -> AbstractContextManager[None]:
    """Keep the timer's program and other runs out while this one compares and changes."""
    said = "another run or the timer is changing the VPN right now: try again"
    return exclusive(LOCK, seconds, busy=lambda _: WireGuardError(said))


def client_connection() -> str:
    """`SSH_CONNECTION` of the session this process belongs to; empty without one.

    sudo takes it out of the environment, so the processes above this one are asked as well.
    """
    pid = os.getpid()
    while pid > 1:
        try:
            with open(f"/proc/{pid}/environ", "rb") as handle:
                for entry in handle.read().split(b"\0"):
                    if entry.startswith(b"SSH_CONNECTION="):
                        return entry.partition(b"=")[2].decode()
            with open(f"/proc/{pid}/stat", encoding="utf-8") as handle:
                pid = int(handle.read().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            return ""
    return ""


def pending() -> dict[str, Any] | None:
    """The state that is kept while a change waits for its confirmation."""
    try:
        state = json.loads(read_text(STATE) or "null")
    except ValueError:
        return None
    return dict(state) if state else None


def reverted() -> dict[str, Any] | None:
    """When a change was taken back that nobody has tried again since."""
    try:
        said = json.loads(read_text(REVERTED) or "null")
        return {"armed": int(said["armed"]), "reverted": int(said["reverted"])}
    except (ValueError, KeyError, TypeError):
        return None


def clock(moment: float) -> str:
    """A time of the day as the host's operator reads it."""
    return time.strftime("%H:%M:%S %Z", time.localtime(moment)).strip()


def _kept(path: str) -> dict[str, Any] | None:
    content = read_text(path)
    if content is None:
        return None
    return {"content": content, "mode": os.stat(path).st_mode & 0o7777}


def _tree() -> tuple[list[str], list[str]]:
    """Files and units that config_tree has written for the role so far."""
    try:
        record = json.loads(read_text(TREE_RECORD) or "{}")
        return list(record.get("files", [])), list(record.get("units", []))
    except (ValueError, AttributeError):
        return [], []


def snapshot(
    name: str, unit: str, files: list[str], *, enabled: bool, active: bool, **seen: Any
) -> dict[str, Any]:
    """Everything that is needed to go back; ``seen`` are peers, endpoints and addresses."""
    tree_files, services = _tree()
    return {
        "interface": name,
        "unit": unit,
        "timer": f"{UNIT}.timer",
        "boot_unit": BOOT_UNIT,
        "boot_link": BOOT_LINK,
        "enabled": enabled,
        "active": active,
        "services": services,
        "files": {path: _kept(path) for path in [*files, TREE_RECORD, *tree_files]},
        **seen,
    }


def arm(state: dict[str, Any], program: str, seconds: int) -> dict[str, Any]:
    """Keep the state and start the timer; an armed one starts again with the state it keeps.

    Returns the state as kept. After this the change may do whatever it does.
    """
    now = int(time.time())
    kept = {
        **(pending() or state),
        "armed": now,
        "deadline": now + seconds,
        "connection": client_connection(),
    }
    # Whole or not at all: a crash in between must leave nothing that looks armed.
    parent = os.path.dirname(DIRECTORY)
    os.makedirs(parent, mode=0o700, exist_ok=True)
    temporary = tempfile.mkdtemp(dir=parent, prefix=".revert-")
    try:
        replace_file(os.path.join(temporary, "revert"), program, 0o700)
        replace_file(os.path.join(temporary, "state.json"), json.dumps(kept))
        if os.path.isdir(DIRECTORY):
            for leaf in ("revert", "state.json"):
                os.rename(os.path.join(temporary, leaf), os.path.join(DIRECTORY, leaf))
            os.rmdir(temporary)
        else:
            os.rename(temporary, DIRECTORY)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    replace_file(BOOT_UNIT, BOOT_UNIT_TEXT.format(name=kept["interface"]), 0o644)
    os.makedirs(os.path.dirname(BOOT_LINK), exist_ok=True)
    if not os.path.lexists(BOOT_LINK):
        os.symlink(BOOT_UNIT, BOOT_LINK)
    for directory in (parent, os.path.dirname(BOOT_UNIT), os.path.dirname(BOOT_LINK)):
        _sync_directory(directory)
    _stop_timer()
    try:
        run(
            [
                "systemd-run",
                "--quiet",
                "--collect",
                f"--unit={UNIT}",
                f"--on-active={seconds}",
                "--timer-property=AccuracySec=1s",
                "--property=Type=oneshot",
                # An interface that does not start now may in a moment.
                "--property=Restart=on-failure",
                "--property=RestartSec=5",
                "--property=StartLimitIntervalSec=0",
                "--description=Bring the VPN back to its last confirmed state",
                "/usr/bin/python3",
                "-IS",
                f"{DIRECTORY}/revert",
                "now",
            ]
        )
    except WireGuardError:
        disarm()
        raise
    return kept


def _sync_directory(path: str) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _stop_timer() -> None:
    for unit in (f"{UNIT}.timer", f"{UNIT}.service"):
        attempt(["systemctl", "stop", unit])
        attempt(["systemctl", "reset-failed", unit])


def disarm() -> None:
    """Confirm the change: there is nothing to go back to any more."""
    # First what a boot would read, so that no crash brings back what was confirmed.
    if os.path.lexists(STATE):
        os.unlink(STATE)
    _stop_timer()
    for path in (BOOT_LINK, BOOT_UNIT):
        if os.path.lexists(path):
            os.unlink(path)
    shutil.rmtree(DIRECTORY, ignore_errors=True)
    forget_reverted()


def forget_reverted() -> None:
    if os.path.lexists(REVERTED):
        os.unlink(REVERTED)


def revert_now() -> None:
    """Go back at once, in a process of systemd's, and wait until that is done.

    Not to be called with the lock held: the program takes it.
    """
    run(["systemctl", "start", f"{UNIT}.service"], timeout=150)

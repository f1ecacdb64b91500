#!/usr/bin/python
"""Ansible module: keep a network share mounted on demand, and prove that it is the share."""

from __future__ import annotations

DOCUMENTATION = r"""
module: nas_mount
short_description: Enable an automount, look whether the share is there, and mark it
description:
  - Protects the bare mount point (root, mode 0000, immutable where the file system knows that), so
    that nothing can be written to the local disk beneath the share.
  - Enables and starts the automount unit, which M(config_tree) wrote, and restarts it when the
    units differ from what was started.
  - Never waits long for a dead server; RV(mounted) is false then and the automount mounts the share
    when the server is back. A server that answers but refuses the mount is a failure.
  - Makes the sentinel file only after the mount table shows the share at the mount point.
extends_documentation_fragment: [prime_spark.fleet.tree.role]
options:
  state:
    description: V(absent) unmounts the share and disables its units.
    type: str
    choices: [present, absent]
    default: present
  mount_point:
    description: Where the share is mounted.
    type: path
    required: true
  unit:
    description: Name of the units without suffix, C(mnt-nas).
    type: str
    required: true
  what:
    description: The share as the mount table shows it.
    type: str
    default: ""
  fstype:
    description: Type of the file system as the mount table shows it.
    type: str
    default: ""
  server:
    description: Address of the server.
    type: str
    default: ""
  port:
    description: TCP port that tells a dead server from a living one.
    type: int
    default: 0
  sentinel:
    description: Name of the file that marks the share.
    type: str
    default: .prime-spark-nas
  timeout:
    description: Seconds that a look at the share may take.
    type: int
    default: 20
  fingerprint:
    description: Hash of everything that the units see; where it differs, the share is remounted.
    type: str
    default: ""
  diagnose:
    description: Command (argument list) that fails as the mount does, saying why; of OpenSSH.
    type: list
    elements: str
    default: []
  rewritten:
    description: Whether this run wrote the units' files, which then have to be read again.
    type: bool
    default: false
  hint:
    description: What to say in addition when the server refuses this host.
    type: str
    default: ""
"""

EXAMPLES = r"""
- name: Mount the share on demand
  nas_mount:
    mount_point: /mnt/nas
    unit: mnt-nas
    what: 10.0.0.9:/share
    fstype: nfs4
    server: 10.0.0.9
    port: 2049
"""

RETURN = r"""
mounted:
  description: Whether the share was seen. Always false in check mode, which does not look.
  type: bool
  returned: always
summary:
  description: One line about what was seen.
  type: str
  returned: always
changes:
  description: One sentence for each change.
  type: list
  elements: str
  returned: always
"""

import array
import contextlib
import ctypes
import fcntl
import hashlib
import json
import os
import re
import select
import signal
import socket
import tempfile
import traceback
from collections.abc import Callable
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.prime_spark.fleet.plugins.module_utils.atomic import replace_file
from ansible_collections.prime_spark.fleet.plugins.module_utils.notes import OWNER_ARGUMENTS, note
from ansible_collections.prime_spark.fleet.plugins.module_utils.process import attempt, run
from ansible_collections.prime_spark.fleet.plugins.module_utils.units import (
    journal,
    unit_states,
)

CLONE_NEWNS = 0x00020000
MS_BIND, MS_REC, MS_PRIVATE = 4096, 16384, 1 << 18
FS_IOC_GETFLAGS, FS_IOC_SETFLAGS = 0x80086601, 0x40086602
FS_IMMUTABLE_FL = 0x10


class NasError(Exception):
    """The share is not as it has to be; the message says what was expected and seen."""


class TimedOutError(NasError):
    """A look at the share did not come back."""


def in_child(function: Callable[[], Any], timeout: float) -> Any:
    """Run a function in a process of its own and return its result.

    A process that touches a dead share can hang beyond the reach of any signal; this one is then
    left behind, and the caller goes on.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        try:
            answer = {"result": function()}
        except OSError as error:
            answer = {"errno": error.errno, "error": str(error)}
        except BaseException:
            answer = {"error": traceback.format_exc(limit=3)}
        with contextlib.suppress(BaseException):
            os.write(writing, json.dumps(answer).encode())
        os._exit(0)
    os.close(writing)
    try:
        ready, _, _ = select.select([reading], [], [], timeout)
        if not ready:
            os.kill(child, signal.SIGKILL)
            raise TimedOutError(f"no answer within {timeout:.0f} s")
        # An answer is far smaller than what a pipe holds.
        answer = json.loads(os.read(reading, 65536) or b'{"error": "the child died"}')
    finally:
        os.close(reading)
    os.waitpid(child, 0)
    if "result" in answer:
        return answer["result"]
    if answer.get("errno"):
        raise OSError(answer["errno"], answer["error"])
    raise NasError(answer["error"])


def make_once(path: str, content: bytes) -> bool:
    """Make a file unless it is there; whether this call made it.

    SFTP has no word for "exists": of two hosts that make a file at the same time, the second may be
    told that it is not permitted to.
    """
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except OSError:
        if os.path.exists(path):
            return False
        raise
    os.write(handle, content)
    os.close(handle)
    return True


# The bare mount point


def flags_of(path: str) -> int | None:
    """The inode's flags, None where the file system has none."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        buffer = array.array("l", [0])
        fcntl.ioctl(handle, FS_IOC_GETFLAGS, buffer, True)
        return int(buffer[0])
    except OSError:
        return None
    finally:
        os.close(handle)


def set_immutable(path: str, wanted: bool) -> bool:
    """Set or clear the immutable flag; whether that changed anything."""
    flags = flags_of(path)
    if flags is None or bool(flags & FS_IMMUTABLE_FL) == wanted:
        return False
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        buffer = array.array("l", [flags ^ FS_IMMUTABLE_FL])
        fcntl.ioctl(handle, FS_IOC_SETFLAGS, buffer)
    except OSError:
        # Without the capability or the feature the mode alone protects it.
        return False
    finally:
        os.close(handle)
    return True


def beneath(mount_point: str, act: Callable[[str], Any], scratch: str) -> Any:
    """Call ``act`` with a path that shows what lies beneath everything mounted at ``mount_point``.

    In a mount namespace of its own (so only ever in a child): its parent bound elsewhere, without
    the mounts below it, shows the bare directory and wakes no automount.
    """
    libc = ctypes.CDLL(None, use_errno=True)

    def call(result: int, what: str) -> None:
        if result != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"{what}: {os.strerror(number)}")

    call(libc.unshare(CLONE_NEWNS), "unshare")
    call(libc.mount(None, b"/", None, MS_REC | MS_PRIVATE, None), "make the mounts private")
    parent = os.path.dirname(mount_point)
    call(libc.mount(parent.encode(), scratch.encode(), None, MS_BIND, None), f"bind {parent}")
    return act(os.path.join(scratch, os.path.basename(mount_point)))


def protect(path: str, check_mode: bool) -> dict[str, Any]:
    """Make the bare directory one that nothing can be written to."""
    changes = []
    if not os.path.isdir(path):
        changes.append("make the mount point")
        if check_mode:
            return {"changes": changes, "entries": 0}
        os.mkdir(path, 0)
    status = os.stat(path)
    if (status.st_mode & 0o7777, status.st_uid, status.st_gid) != (0, 0, 0):
        changes.append("protect the bare mount point")
        if not check_mode:
            set_immutable(path, False)
            os.chown(path, 0, 0)
            os.chmod(path, 0)
    if not check_mode and set_immutable(path, True) and not changes:
        changes.append("protect the bare mount point")
    return {"changes": changes, "entries": len(os.listdir(path))}


def unprotect(path: str) -> bool:
    """Remove the bare directory when it is empty; whether it was."""
    if not os.path.isdir(path):
        return False
    set_immutable(path, False)
    if os.listdir(path):
        os.chmod(path, 0o755)
        return False
    os.rmdir(path)
    return True


def act_beneath(mount_point: str, act: Callable[[str], Any]) -> Any:
    os.makedirs(os.path.dirname(mount_point), exist_ok=True)
    scratch = tempfile.mkdtemp(prefix="prime-spark-nas-", dir="/run")
    try:
        return in_child(lambda: beneath(mount_point, act, scratch), 20)
    finally:
        os.rmdir(scratch)


# The mount table


def unescape(field: str) -> str:
    """A field of mountinfo with its octal escapes resolved."""
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        field = field.replace(code, character)
    return field


def mounted_at(mountinfo: str, mount_point: str) -> tuple[str, str] | None:
    """Type and source of the topmost real mount at a path; reads no file on it."""
    found = None
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        fstype, source = right.split()[:2]
        if unescape(left.split()[4]) == mount_point and fstype != "autofs":
            found = (fstype, unescape(source))
    return found


def answers(server: str, port: int, timeout: float = 3) -> bool:
    try:
        socket.create_connection((server, port), timeout=timeout).close()
    except OSError:
        return False
    return True


def ssh_refusal(said: str, what: str, hint: str) -> str | None:
    """What ssh's refusal means and what to do about it; None when nobody refused."""
    if "Host key verification failed" in said:
        shown = re.search(r"SHA256:[A-Za-z0-9+/]+", said)
        key = f", {shown[0]}" if shown else ""
        return (
            f"{what} refused: the server shows an SSH host key that nas_host_keys lacks{key}\n"
            "If the NAS was replaced, put its new key into nas_host_keys; if not, do not trust it"
        )
    if "Permission denied" in said:
        return f"{what} refused: the server does not accept the key of this host\n{hint}".strip()
    return None


class Mount:
    """The units of one share."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.params: dict[str, Any] = module.params
        self.check_mode: bool = module.check_mode
        self.mount_unit = f"{self.params['unit']}.mount"
        self.automount_unit = f"{self.params['unit']}.automount"
        self.applied_path = f"/var/lib/prime-spark/nas-{self.params['unit']}"

    def systemctl(self, *arguments: str, timeout: float = 60) -> None:
        run(["systemctl", *arguments], NasError, timeout=timeout)

    def unit_properties(self, unit: str) -> dict[str, str]:
        return unit_states([unit])[unit]

    def wanted_fingerprint(self) -> str:
        """Of what is wanted, not of what lies on the disk: in check mode that is still the old."""
        return hashlib.sha256(self.params["fingerprint"].encode()).hexdigest()

    def applied_fingerprint(self) -> str | None:
        try:
            with open(self.applied_path, encoding="utf-8") as handle:
                return handle.read().strip()
        except FileNotFoundError:
            return None

    def differences(self) -> list[str]:
        automount = self.unit_properties(self.automount_unit)
        mount = self.unit_properties(self.mount_unit)
        changes = []
        if automount.get("UnitFileState") != "enabled":
            changes.append(f"enable {self.automount_unit}")
        applied = self.applied_fingerprint()
        reload_needed = "yes" in (
            automount.get("NeedDaemonReload"),
            mount.get("NeedDaemonReload"),
        )
        stale = (
            self.params["rewritten"]
            or reload_needed
            or (applied is not None and applied != self.wanted_fingerprint())
        )
        if automount.get("ActiveState") != "active":
            changes.append(f"start {self.automount_unit}")
        elif stale:
            changes.append(f"restart {self.automount_unit}")
        return changes

    def bring_up(self, changes: list[str]) -> None:
        self.systemctl("daemon-reload")
        if any(change.startswith("restart") for change in changes):
            self.systemctl("stop", self.mount_unit, self.automount_unit)
        self.systemctl("enable", "--quiet", self.automount_unit)
        attempt(["systemctl", "reset-failed", self.mount_unit, self.automount_unit])
        self.systemctl("start", self.automount_unit)
        self.record_applied()

    def record_applied(self) -> None:
        os.makedirs(os.path.dirname(self.applied_path), mode=0o755, exist_ok=True)
        # For root alone: a password's hash is part of it.
        replace_file(self.applied_path, self.wanted_fingerprint() + "\n")

    def mount(self) -> None:
        timeout = self.params["timeout"] + 10
        try:
            self.systemctl("start", self.mount_unit, timeout=timeout)
        except NasError as error:
            reason = self.refusal()
            if reason is None:
                reason = f"{error}\n{journal(self.mount_unit)}\n{self.params['hint']}".strip()
            raise NasError(reason) from None

    def refusal(self) -> str | None:
        """Why the server refuses this host, None when that is not the reason."""
        argv, hint = self.params["diagnose"], self.params["hint"]
        if not argv:
            return None
        done = attempt(argv, timeout=self.params["timeout"])
        if done.returncode == 0:
            return None
        return ssh_refusal(done.stderr, self.params["what"], hint)

    def sentinel(self) -> bool:
        """Make the sentinel where it is missing; whether it was."""
        path = os.path.join(self.params["mount_point"], self.params["sentinel"])
        content = b"This directory is the NAS share; the local disk has no such file.\n"
        return bool(in_child(lambda: make_once(path, content), self.params["timeout"]))

    def look(self) -> tuple[bool, bool, str]:
        """Whether the share is mounted, whether the sentinel was made, and the line about it."""
        params = self.params
        if not answers(params["server"], params["port"]):
            line = (
                f"deferred: {params['server']}:{params['port']} does not answer; "
                f"{params['mount_point']} is mounted on first use once it does"
            )
            return False, False, line
        for last in (False, True):
            self.mount()
            with open("/proc/self/mountinfo", encoding="utf-8") as handle:
                seen = mounted_at(handle.read(), params["mount_point"])
            if seen != (params["fstype"], params["what"]):
                wanted = f"{params['what']} ({params['fstype']})"
                got = f"{seen[1]} ({seen[0]})" if seen else "nothing"
                raise NasError(f"expected {wanted} at {params['mount_point']}, seen: {got}")
            try:
                made = self.sentinel()
                return True, made, f"{seen[1]} at {params['mount_point']} ({seen[0]})"
            except (NasError, OSError) as error:
                if last or isinstance(error, PermissionError):
                    raise NasError(
                        f"{params['mount_point']} is mounted, but {params['sentinel']} cannot be "
                        f"made in it: {error}"
                    ) from None
                # A mount that outlived its connection: a new one may do.
                self.systemctl("stop", self.mount_unit)
        raise AssertionError("not reached")

    def present(self) -> dict[str, Any]:
        mount_point = self.params["mount_point"]
        if self.check_mode and not os.path.isdir(os.path.dirname(mount_point)):
            bare: dict[str, Any] = {"changes": ["make the mount point"], "entries": 0}
        else:
            bare = act_beneath(mount_point, lambda path: protect(path, self.check_mode))
        units = self.differences()
        changes = [*bare["changes"], *units]
        result: dict[str, Any] = {"mounted": False, "summary": ""}
        if bare["entries"]:
            self.module.warn(
                f"{bare['entries']} entries lie on the local disk beneath {mount_point}; "
                "move them away"
            )
        if self.check_mode:
            result["summary"] = "check mode does not look at the share"
        else:
            if units:
                self.bring_up(units)
            elif self.applied_fingerprint() is None:
                self.record_applied()
            result["mounted"], made, result["summary"] = self.look()
            note(self.params, "unit", {self.automount_unit: {"runs": True}})
            seen = {"sentinel": self.params["sentinel"], "timeout": self.params["timeout"]}
            note(self.params, "mount", {mount_point: seen})
            if made:
                changes.append(f"make {self.params['sentinel']} on the share")
        return {**result, "changes": changes, "changed": bool(changes)}

    def absent(self) -> dict[str, Any]:
        changes = []
        for unit in (self.mount_unit, self.automount_unit):
            seen = self.unit_properties(unit)
            if seen.get("ActiveState") in ("active", "activating", "failed"):
                changes.append(f"stop {unit}")
                if not self.check_mode:
                    self.systemctl("stop", unit)
            if seen.get("UnitFileState") == "enabled":
                changes.append(f"disable {unit}")
                if not self.check_mode:
                    self.systemctl("disable", "--quiet", unit)
        if not self.check_mode:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.applied_path)
            if act_beneath(self.params["mount_point"], unprotect):
                changes.append(f"remove {self.params['mount_point']}")
        return {"changed": bool(changes), "changes": changes, "mounted": False, "summary": "absent"}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "mount_point": {"type": "path", "required": True},
            "unit": {"type": "str", "required": True},
            "what": {"type": "str", "default": ""},
            "fstype": {"type": "str", "default": ""},
            "server": {"type": "str", "default": ""},
            "port": {"type": "int", "default": 0},
            "sentinel": {"type": "str", "default": ".prime-spark-nas"},
            "timeout": {"type": "int", "default": 20},
            "fingerprint": {"type": "str", "default": ""},
            "diagnose": {"type": "list", "elements": "str", "default": []},
            "hint": {"type": "str", "default": ""},
            "rewritten": {"type": "bool", "default": False},
            **OWNER_ARGUMENTS,
        },
        supports_check_mode=True,
        required_if=[("state", "present", ["what", "fstype", "server", "port"])],
    )
    mount = Mount(module)
    try:
        result = mount.present() if module.params["state"] == "present" else mount.absent()
    except (NasError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()

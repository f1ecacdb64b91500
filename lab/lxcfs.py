"""lxcfs: a host sees the memory, CPU and uptime figures of its own cgroup, not the machine's.

One lxcfs serves the whole lab. Its files are laid over a host's /proc after systemd-nspawn has
mounted that (its own --bind comes too early). `python -m lab.lxcfs PID` moves detached copies of
the mounts into the host, so that the host needs no path into the supervisor's tree.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
from pathlib import Path

from lab.common import CHECKOUT, RUNTIME, run

MOUNT = RUNTIME / "lxcfs"  # mounted in the supervisor's mount namespace only
FILES = ("cpuinfo", "loadavg", "meminfo", "stat", "swaps", "uptime")

_AT_FDCWD = -100
_OPEN_TREE_CLONE = 1
_O_CLOEXEC = 0o2000000
_MOVE_MOUNT_F_EMPTY_PATH = 4
_CLONE_NEWNS = 0x20000
_MNT_DETACH = 2
# The same on every architecture.
_SYS_OPEN_TREE = 428
_SYS_MOVE_MOUNT = 429


def available() -> bool:
    """Whether this machine can serve own figures; without, hosts show the machine's."""
    return shutil.which("lxcfs") is not None and Path("/dev/fuse").exists()


def command() -> list[str]:
    """The lxcfs process."""
    return ["lxcfs", "-f", "-l", "--enable-cfs", "-p", str(RUNTIME / "lxcfs.pid"), str(MOUNT)]


def clear() -> None:
    """Make the mount point free; an lxcfs that died left its mount there."""
    while run(["umount", "--lazy", MOUNT], check=False).returncode == 0:
        pass
    MOUNT.mkdir(exist_ok=True)


def ready() -> bool:
    """Whether lxcfs serves its files."""
    try:
        return (MOUNT / "proc/meminfo").exists()
    except OSError:  # an lxcfs that died and is not replaced yet
        return False


def bind(leader: int) -> bool:
    """Lay the files over a host's /proc; False while the host is not ready for it.

    Runs in a process of its own: entering a mount namespace cannot be undone.
    """
    if Path(f"/proc/{leader}/comm").read_text().strip() != "systemd":
        return False
    run(["env", "-C", CHECKOUT, sys.executable, "-m", "lab.lxcfs", str(leader)])
    return True


def _enter_and_move(leader: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)

    def call(result: int, what: str) -> int:
        if result < 0:
            number = ctypes.get_errno()
            raise OSError(number, f"{what}: {os.strerror(number)}")
        return result

    trees = {}
    for name in FILES:
        path = os.fsencode(MOUNT / "proc" / name)
        flags = _OPEN_TREE_CLONE | _O_CLOEXEC
        trees[name] = call(libc.syscall(_SYS_OPEN_TREE, _AT_FDCWD, path, flags), "open_tree")
    namespace = os.open(f"/proc/{leader}/ns/mnt", os.O_RDONLY)
    call(libc.setns(namespace, _CLONE_NEWNS), "setns")
    for name, tree in trees.items():
        target = os.fsencode(f"/proc/{name}")
        # One from an lxcfs that has died in the meantime; the plain file cannot be unmounted.
        while libc.umount2(target, _MNT_DETACH) == 0:
            pass
        arguments = (tree, b"", _AT_FDCWD, target, _MOVE_MOUNT_F_EMPTY_PATH)
        call(libc.syscall(_SYS_MOVE_MOUNT, *arguments), "move_mount")


if __name__ == "__main__":
    _enter_and_move(int(sys.argv[1]))

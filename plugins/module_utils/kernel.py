"""What the kernel of a host can do, asked without loading anything."""

from __future__ import annotations

import shutil

from ansible_collections.prime_spark.fleet.plugins.module_utils.process import attempt


def has_filesystem(listing: str, name: str) -> bool:
    """Whether the text of /proc/filesystems has the name."""
    return any(line.split()[-1:] == [name] for line in listing.splitlines())


def kernel_has(filesystem: str, driver: str, load: bool = False) -> bool:
    """Whether the kernel has a file system, or could load its module; ``load`` loads it."""
    with open("/proc/filesystems", encoding="utf-8") as handle:
        if has_filesystem(handle.read(), filesystem):
            return True
    modprobe = shutil.which("modprobe", path="/usr/sbin:/sbin:/usr/bin:/bin")
    if modprobe is None:
        return False
    argv = [modprobe, "-q", *([] if load else ["-n"]), driver]
    return attempt(argv).returncode == 0

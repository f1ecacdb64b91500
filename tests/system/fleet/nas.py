"""The share as its clients see it, for the tests of S1."""

from __future__ import annotations

from typing import Any

from testinfra.host import Host

from tests.system.fleet.fleet import members, probe, service_python, setting, shell

CLIENTS = members("nas")
(SERVER,) = members("nas_server")
MOUNT_POINT = str(setting(CLIENTS[0], "nas", "nas_mount_point"))
SHARE = str(setting(CLIENTS[0], "nas", "nas_share"))
UNIT = MOUNT_POINT.strip("/").replace("-", "\\x2d").replace("/", "-")
SENTINEL = ".prime-spark-nas"
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
    """Use the share as our services do."""
    python = service_python("telemetry")
    return dict(probe(host, "nas_storage", MOUNT_POINT, *arguments, python=python))


def beneath(host: Host) -> list[str]:
    """Mode and owner of the local directory at the mount point, and what lies in it.

    Seen without what is mounted on it, so this neither waits for the share nor mounts it.
    """
    script = """
        set -e
        view=$(mktemp -d)
        trap 'rmdir "$view"' EXIT
        unshare --mount --propagation private bash -c '
            mount --bind / "$1"
            stat --format "%a %U" "$1$2"
            ls -A "$1$2"' bash "$view" "$1"
    """
    return shell(host, script, MOUNT_POINT).splitlines()

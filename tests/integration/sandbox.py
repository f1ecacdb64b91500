"""Commands in an image's root: an unprivileged user, private mounts, a PID namespace of their own.

The root is read-only; `data_path` in it is a directory of the sandbox's own. What runs there dies
with the process that started it, however that ends. Needs root and the unpacked images
(`python -m lab.image_builds`).
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, ClassVar

from lab import image_builds as images
from lab.common import LabError

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# Arguments: root, data directory, its place in the root, uid, options of /tmp, then the command.
# The working directories are tmpfs, the root itself is read-only. Giving up root clears the death
# signal, so it is set again last; the command becomes PID 1 of the namespace and takes all children
# along.
_SANDBOX = """
root=$1 data=$2 place=$3 uid=$4 tmp=$5; shift 5
mount --bind "$root" "$root"
mount -o remount,bind,ro "$root"
mount -t proc -o nosuid,nodev,noexec proc "$root/proc"
mount -t tmpfs -o mode=0755 tmpfs "$root/dev"
for node in null zero full random urandom; do
    : > "$root/dev/$node"
    mount --bind "/dev/$node" "$root/dev/$node"
done
mkdir "$root/dev/shm"
mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
mount -t tmpfs -o "noexec,nosuid,nodev,$tmp" tmpfs "$root/tmp"
mount -t tmpfs -o mode=1777 tmpfs "$root/run"
mount --bind "$data" "$root$place"
exec chroot "$root" setpriv --reuid="$uid" --regid="$uid" --clear-groups --no-new-privs \\
    --bounding-set=-all --pdeathsig=KILL "$@"
"""


# A death signal fires when the starting *thread* ends, so one thread that lives as long as the
# process starts every command.
_launcher = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sandbox-launcher")


class SandboxError(LabError):
    """A command failed; the message holds what it printed."""


class Sandbox:
    """The root of `image` with the data directory `directory`/data at `data_path`."""

    image: ClassVar[str]
    uid: ClassVar[int]
    data_path: ClassVar[str]
    # As of a container's tmpfs, beside what Docker gives it: noexec, nosuid, nodev.
    tmp_options: ClassVar[str] = "mode=1777"

    def __init__(self, directory: Path) -> None:
        self._data = directory / "data"
        self._data.mkdir(mode=0o700)
        os.chown(self._data, self.uid, self.uid)

    def _environment(self) -> dict[str, str]:
        """What commands find in their environment, over the few variables of every sandbox."""
        return {}

    def run(self, *command: str) -> str:
        """Run a command of the image as its user; return what it printed."""
        process = self._spawn(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        output, error = process.communicate()
        if process.returncode != 0:
            text = (output + error).decode(errors="replace")
            raise SandboxError(f"{command[0]} failed with {process.returncode}\n{text}")
        return output.decode()

    def _write(self, name: str, text: str) -> None:
        """Write a file of the sandbox's user, readable by it only."""
        path = self._data / name
        path.unlink(missing_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as stream:
            os.fchown(stream.fileno(), self.uid, self.uid)
            stream.write(text)

    def _spawn(
        self, command: Sequence[str], *, stdout: int | IO[bytes], stderr: int
    ) -> subprocess.Popen[bytes]:
        """Start a command as the sandbox's user in the image's root."""
        argv = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork"]
        argv += ["--kill-child=KILL", "--", "/bin/sh", "-euc", _SANDBOX, "sandbox"]
        argv += [str(images.root_path(self.image)), str(self._data), self.data_path]
        argv += [str(self.uid), self.tmp_options, *command]
        environment = {
            "PATH": SYSTEM_PATH,
            "LANG": "C.UTF-8",
            "HOME": "/tmp",
            **self._environment(),
        }

        def spawn() -> subprocess.Popen[bytes]:
            return subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                env=environment,
                start_new_session=True,  # a Ctrl-C at the terminal is ours to handle
            )

        return _launcher.submit(spawn).result()

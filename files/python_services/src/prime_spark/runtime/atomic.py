"""Files that are replaced in one step: a crash leaves the old one or the new one."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path


def temporary(folder: Path) -> Path:
    """Return the name of a new file that begins with a dot."""
    return folder / f".tmp-{secrets.token_hex(8)}"


def sync_directory(path: Path) -> None:
    """Bring names that were made or replaced to the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Replace a file; it is on the disk when this returns, and a failure leaves nothing.

    The umask takes away from `mode`, as from any new file's.
    """
    partial = temporary(path.parent)
    try:
        partial.touch(mode, exist_ok=False)
        with partial.open("r+b") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    with contextlib.suppress(OSError):  # some network file systems refuse it
        sync_directory(path.parent)

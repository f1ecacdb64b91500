"""The lock of a file or a directory: it is one process's at a time, and ends with it."""

from __future__ import annotations

import fcntl
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

PAUSE_SECONDS = 0.1


@contextmanager
def exclusive(
    path: str | os.PathLike[str],
    seconds: float = math.inf,
    *,
    busy: Callable[[str], Exception] = TimeoutError,
    waiting: Callable[[], object] = lambda: None,
) -> Iterator[None]:
    """Hold the lock of a directory, or of a file, which is made where it is missing.

    While another process holds it, this one calls ``waiting`` once and waits; after ``seconds`` it
    raises what ``busy`` makes of that process's id.
    """
    directory = os.path.isdir(path)
    # What others may write to, such as /run/lock, must not lead this to a file of somebody else's.
    flags = os.O_RDONLY if directory else os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
    deadline = time.monotonic() + seconds
    descriptor = os.open(path, flags, 0o600)
    try:
        announced = False
        while not _taken(descriptor):
            if time.monotonic() >= deadline:
                holder = b"" if directory else os.pread(descriptor, 20, 0).strip()
                raise busy(holder.decode() or "unknown")
            if not announced:
                waiting()
                announced = True
            time.sleep(PAUSE_SECONDS)
        if not directory:
            os.truncate(descriptor, 0)
            os.write(descriptor, str(os.getpid()).encode())
        yield
    finally:
        # Not unlocked: a process that this one has forked holds it as well.
        os.close(descriptor)


def _taken(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True

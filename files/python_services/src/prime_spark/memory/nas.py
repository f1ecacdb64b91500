"""Objects on the NAS, as files under one directory of the share.

A key is a path of one or more names (`voice/greeting.wav`). JSON values are stored with the
suffix `.json`, bytes under the key itself. Nothing is ever written to the local disk underneath
an absent mount: a sentinel file on the share, which is created only while the share is mounted,
has to be there.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ParamSpec, TypeVar
from weakref import WeakValueDictionary

import msgspec

from prime_spark.runtime import atomic, finite_json

SENTINEL = ".prime-spark-nas"

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9 ._-]{0,199}")
_JSON_SUFFIX = ".json"
_MAX_KEY_CHARS = 1024
_STALE_TRIES = 5
_WRITE_SECONDS = 600.0
# A key that is being replaced may be absent for a moment: where bytes take the place of JSON, and
# over sshfs, since FUSE moves a file that somebody reads out of the way before another is in place.
_LOOK_AGAIN_SECONDS = (0.005, 0.01, 0.02)
_ABSENT = (FileNotFoundError, NotADirectoryError, IsADirectoryError)

_P = ParamSpec("_P")
_T = TypeVar("_T")


class NASError(Exception):
    """The NAS could not do what was asked."""


class NASUnavailableError(NASError):
    """The share is not mounted, or does not answer."""


class NASKeyError(NASError, ValueError):
    """The key is not allowed."""


class NASNotFoundError(NASError, KeyError):
    """There is no object with the key."""

    def __str__(self) -> str:
        return Exception.__str__(self)


class NASTooLargeError(NASError):
    """The object is larger than the caller takes."""


class NASStorage:
    """Stores objects under `root`, a directory of the mounted share that holds the sentinel.

    The threads of one process may use it at the same time; of several processes, only one may
    change an object.
    """

    def __init__(self, root: str | Path) -> None:
        self._root = Path(root)
        self._lock = threading.Lock()
        self._written = -math.inf
        self._changing: WeakValueDictionary[str, Any] = WeakValueDictionary()  # locks by key

    @contextlib.contextmanager
    def alone(self, key: str) -> Iterator[None]:
        """Keep other threads from changing the object under `key` inside."""
        with self._lock:
            lock = self._changing.setdefault(key, threading.RLock())
        with lock:
            yield

    def store(self, key: str, obj: object) -> None:
        """Store `obj` under `key`, replacing what is there: bytes as they are, else as JSON.

        Atomic: a reader sees the old object or the new one, also after a power cut. Raises
        NASKeyError, NASUnavailableError, NASError (full, read-only), or TypeError or ValueError
        for an object that JSON cannot express.
        """
        name = _checked(key)
        if isinstance(obj, bytes | bytearray | memoryview):
            data, target, other = bytes(obj), name, name + _JSON_SUFFIX
        else:
            data, target, other = finite_json.encode(obj), name + _JSON_SUFFIX, name
        # Of two kinds at the same time, each would remove the other's file.
        with self.alone(key), self._share() as root:
            try:
                (root / target).parent.mkdir(parents=True, exist_ok=True)
                _unless_stale(atomic.replace, root / target, data)
            except OSError as error:
                self._written = -math.inf
                # SFTP has no error for a full disk: sshfs says "not permitted", say.
                if (free := _free_bytes(root)) is not None and free < len(data):
                    raise NASError(
                        f"NAS {self._root} is full: {free} bytes free, {len(data)} needed"
                    ) from error
                raise
            (root / other).unlink(missing_ok=True)  # the key held the other kind before

    def retrieve(self, key: str, *, max_bytes: int | None = None) -> object:
        """Return the object stored under `key`: bytes, or what its JSON says.

        Raises NASNotFoundError when there is none, NASTooLargeError when it has more than
        `max_bytes`; else as `store`.
        """
        name = _checked(key)
        with self._share() as root:
            for pause in (*_LOOK_AGAIN_SECONDS, 0.0):
                for candidate in (name, name + _JSON_SUFFIX):
                    with contextlib.suppress(*_ABSENT):
                        data = _unless_stale(_read, root / candidate, key, max_bytes)
                        return data if candidate == name else _decode(key, data)
                time.sleep(pause)
        raise NASNotFoundError(f"no object {key!r} on the NAS")

    def delete(self, key: str) -> None:
        """Remove the object under `key`; raises NASNotFoundError when there is none."""
        name = _checked(key)
        removed = False
        with self.alone(key), self._share() as root:
            for candidate in (name, name + _JSON_SUFFIX):
                with contextlib.suppress(*_ABSENT):
                    (root / candidate).unlink()
                    removed = True
        if not removed:
            raise NASNotFoundError(f"no object {key!r} on the NAS")

    def keys(self, prefix: str = "") -> list[str]:
        """Return the keys that start with `prefix`, sorted."""
        with self._share() as root:
            return sorted(key for key in _walk(root) if key.startswith(prefix))

    def sizes(self, folder: str) -> dict[str, int]:
        """Return the keys right under `folder`, without it, and how many bytes each takes."""
        sizes: dict[str, int] = {}
        with self._share() as root, contextlib.suppress(FileNotFoundError):
            for entry in os.scandir(root / _checked(folder)):
                if _NAME.fullmatch(entry.name) and entry.is_file():
                    # After a crash both kinds of an object may be there.
                    key = entry.name.removesuffix(_JSON_SUFFIX)
                    sizes[key] = sizes.get(key, 0) + entry.stat().st_size
        return sizes

    def prune(self, folder: str, max_bytes: int, names: re.Pattern[str]) -> int:
        """Remove the oldest files right under `folder` while they take more than `max_bytes`.

        Only files whose names `names` matches count and go. Returns how many went.
        """
        found: list[tuple[float, int, str]] = []
        removed = 0
        with self._share() as root, contextlib.suppress(FileNotFoundError):
            for entry in os.scandir(root / _checked(folder)):
                if names.fullmatch(entry.name) and entry.is_file():
                    status = entry.stat()
                    found.append((status.st_mtime, status.st_size, entry.path))
            excess = sum(size for _, size, _ in found) - max_bytes
            for _, size, path in sorted(found):
                if excess <= 0:
                    break
                Path(path).unlink(missing_ok=True)
                excess -= size
                removed += 1
        return removed

    def free_bytes(self) -> int | None:
        """Return how many bytes may still be written, None when the share does not tell."""
        with self._share() as root:
            return _free_bytes(root)

    def check(self) -> None:
        """See that the share takes a file; raises NASUnavailableError, or NASError (read-only).

        The file is written seldom while all is well: a NAS at home lets its disks sleep.
        """
        with self._share() as root:
            if time.monotonic() - self._written < _WRITE_SECONDS:
                return
            self._written = -math.inf
            probe = atomic.temporary(root)
            try:
                with probe.open("xb") as file:
                    file.write(b".")
            finally:
                with contextlib.suppress(OSError):
                    probe.unlink(missing_ok=True)
            self._written = time.monotonic()

    @contextlib.contextmanager
    def _share(self) -> Iterator[Path]:
        """Yield a path to the share that keeps meaning the share, and turn errors into NASError.

        It leads through an open descriptor: when the share is unmounted after the sentinel was
        seen, what follows fails instead of reaching the disk underneath.
        """
        try:
            descriptor = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            raise NASUnavailableError(f"{self._root} does not exist (not mounted?)") from None
        except OSError as error:
            raise NASUnavailableError(f"{self._root}: {error.strerror}") from error
        try:
            root = Path(f"/proc/self/fd/{descriptor}")
            if not (root / SENTINEL).is_file():
                raise NASUnavailableError(
                    f"{self._root} does not show the share: {SENTINEL} is missing (not mounted?)"
                )
            yield root
        except OSError as error:
            raise NASError(f"NAS {self._root}: {error.strerror or error}") from error
        finally:
            os.close(descriptor)


def _free_bytes(root: Path) -> int | None:
    """Return how many bytes may still be written, None when the share does not tell."""
    try:
        status = os.statvfs(root)
    except OSError:
        return None
    return status.f_bavail * status.f_frsize


def _walk(root: Path) -> Iterator[str]:
    for folder, folders, files in os.walk(root, onerror=_raise):
        folders[:] = [name for name in folders if _NAME.fullmatch(name)]
        for name in files:
            if _NAME.fullmatch(name):
                key = (Path(folder) / name).relative_to(root).as_posix()
                yield key.removesuffix(_JSON_SUFFIX)


def _checked(key: str) -> str:
    """Return `key` when it is safe as a relative path."""
    if len(key) > _MAX_KEY_CHARS or not all(_NAME.fullmatch(name) for name in key.split("/")):
        raise NASKeyError(
            f"key {key[:80]!r} is not allowed: names of letters, digits, space, _ . - "
            "(not first a dot, space or dash), separated by /"
        )
    if key.endswith(_JSON_SUFFIX):
        raise NASKeyError(f"key {key!r} must not end with {_JSON_SUFFIX}, JSON gets it anyway")
    return key


def _read(path: Path, key: str, max_bytes: int | None) -> bytes:
    with path.open("rb") as file:
        data = file.read(-1 if max_bytes is None else max_bytes + 1)
    if max_bytes is not None and len(data) > max_bytes:
        raise NASTooLargeError(f"object {key!r} on the NAS has more than {max_bytes} bytes")
    return data


def _unless_stale(work: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Repeat what fails because somebody else replaced the file meanwhile."""
    for _ in range(_STALE_TRIES - 1):
        try:
            return work(*args, **kwargs)
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
    return work(*args, **kwargs)


def _decode(key: str, data: bytes) -> object:
    try:
        return msgspec.json.decode(data)
    except msgspec.DecodeError as error:
        raise NASError(f"object {key!r} on the NAS is not valid JSON: {error}") from error


def _raise(error: OSError) -> None:
    raise error

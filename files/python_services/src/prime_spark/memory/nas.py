"""Objects on the NAS, as files under one directory of the share.

A key is a path of one or more names (`voice/greeting.wav`). JSON values are stored with the
suffix `.json`, bytes under the key itself. Nothing is ever written to the local disk underneath
an absent mount: a sentinel file on the share, which is created only while the share is mounted,
has to be there.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path

import msgspec

SENTINEL = ".prime-spark-nas"

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9 ._-]{0,199}")
_JSON_SUFFIX = ".json"
_TEMPORARY_PREFIX = ".tmp-"
_MAX_KEY_CHARS = 1024


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


class NASStorage:
    """Stores objects under `root`, a directory of the mounted share that holds the sentinel."""

    def __init__(self, root: str | Path) -> None:
        self._root = Path(root)

    def store(self, key: str, obj: object) -> None:
        """Store `obj` under `key`, replacing what is there: bytes as they are, else as JSON.

        Atomic: a reader sees the old object or the new one, also after a power cut. Raises
        NASKeyError, NASUnavailableError, NASError (full, read-only), or TypeError for an object
        that JSON cannot express.
        """
        path = self._path(key)
        if isinstance(obj, bytes | bytearray | memoryview):
            data, target, other = bytes(obj), path, _json_path(path)
        else:
            data, target, other = msgspec.json.encode(obj), _json_path(path), path
        with self._answering():
            self._require_mount()
            target.parent.mkdir(parents=True, exist_ok=True)
            _replace(target, data)
            other.unlink(missing_ok=True)  # the key held the other kind before

    def retrieve(self, key: str) -> object:
        """Return the object stored under `key`: bytes, or what its JSON says.

        Raises NASNotFoundError when there is none; else as `store`.
        """
        path = self._path(key)
        with self._answering():
            self._require_mount()
            for candidate in (path, _json_path(path)):
                with contextlib.suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError):
                    data = candidate.read_bytes()
                    return data if candidate is path else _decode(key, data)
        raise NASNotFoundError(f"no object {key!r} on the NAS")

    def delete(self, key: str) -> None:
        """Remove the object under `key`; raises NASNotFoundError when there is none."""
        path = self._path(key)
        removed = False
        with self._answering():
            self._require_mount()
            for candidate in (path, _json_path(path)):
                with contextlib.suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError):
                    candidate.unlink()
                    removed = True
        if not removed:
            raise NASNotFoundError(f"no object {key!r} on the NAS")

    def keys(self, prefix: str = "") -> list[str]:
        """Return the keys that start with `prefix`, sorted."""
        with self._answering():
            self._require_mount()
            return sorted(key for key in self._walk() if key.startswith(prefix))

    def _walk(self) -> Iterator[str]:
        for folder, folders, files in os.walk(self._root, onerror=_raise):
            folders[:] = [name for name in folders if _NAME.fullmatch(name)]
            for name in files:
                if _NAME.fullmatch(name):
                    key = (Path(folder) / name).relative_to(self._root).as_posix()
                    yield key.removesuffix(_JSON_SUFFIX)

    def _path(self, key: str) -> Path:
        names = key.split("/")
        if len(key) > _MAX_KEY_CHARS or not all(_NAME.fullmatch(name) for name in names):
            raise NASKeyError(
                f"key {key[:80]!r} is not allowed: names of letters, digits, space, _ . - "
                "(not first a dot, space or dash), separated by /"
            )
        if key.endswith(_JSON_SUFFIX):
            raise NASKeyError(f"key {key!r} must not end with {_JSON_SUFFIX}, JSON gets it anyway")
        return self._root.joinpath(*names)

    def _require_mount(self) -> None:
        if not (self._root / SENTINEL).is_file():
            raise NASUnavailableError(
                f"{self._root} does not show the share: {SENTINEL} is missing (not mounted?)"
            )

    @contextlib.contextmanager
    def _answering(self) -> Iterator[None]:
        """Turn what the operating system says into a NASError."""
        try:
            yield
        except OSError as error:
            if isinstance(error, NASError):
                raise
            raise NASError(f"NAS {self._root}: {error.strerror or error}") from error


def _replace(target: Path, data: bytes) -> None:
    temporary = target.with_name(f"{_TEMPORARY_PREFIX}{secrets.token_hex(8)}")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    with contextlib.suppress(OSError):  # some network file systems refuse it
        folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _json_path(path: Path) -> Path:
    return path.with_name(path.name + _JSON_SUFFIX)


def _decode(key: str, data: bytes) -> object:
    try:
        return msgspec.json.decode(data)
    except msgspec.DecodeError as error:
        raise NASError(f"object {key!r} on the NAS is not valid JSON: {error}") from error


def _raise(error: OSError) -> None:
    raise error

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


class NASTooLargeError(NASError):
    """The object is larger than the caller takes."""


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
        name = _checked(key)
        if isinstance(obj, bytes | bytearray | memoryview):
            data, target, other = bytes(obj), name, name + _JSON_SUFFIX
        else:
            data, target, other = msgspec.json.encode(obj), name + _JSON_SUFFIX, name
        with self._share() as root:
            try:
                (root / target).parent.mkdir(parents=True, exist_ok=True)
                _replace(root / target, data)
            except OSError as error:
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
            for candidate in (name, name + _JSON_SUFFIX):
                with contextlib.suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError):
                    data = _read(root / candidate, key, max_bytes)
                    return data if candidate == name else _decode(key, data)
        raise NASNotFoundError(f"no object {key!r} on the NAS")

    def delete(self, key: str) -> None:
        """Remove the object under `key`; raises NASNotFoundError when there is none."""
        name = _checked(key)
        removed = False
        with self._share() as root:
            for candidate in (name, name + _JSON_SUFFIX):
                with contextlib.suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError):
                    (root / candidate).unlink()
                    removed = True
        if not removed:
            raise NASNotFoundError(f"no object {key!r} on the NAS")

    def keys(self, prefix: str = "") -> list[str]:
        """Return the keys that start with `prefix`, sorted."""
        with self._share() as root:
            return sorted(key for key in _walk(root) if key.startswith(prefix))

    def check(self) -> None:
        """Raise NASUnavailableError unless the share is mounted."""
        with self._share():
            pass

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


def _read(path: Path, key: str, max_bytes: int | None) -> bytes:
    with path.open("rb") as file:
        data = file.read(-1 if max_bytes is None else max_bytes + 1)
    if max_bytes is not None and len(data) > max_bytes:
        raise NASTooLargeError(f"object {key!r} on the NAS has more than {max_bytes} bytes")
    return data


def _decode(key: str, data: bytes) -> object:
    try:
        return msgspec.json.decode(data)
    except msgspec.DecodeError as error:
        raise NASError(f"object {key!r} on the NAS is not valid JSON: {error}") from error


def _raise(error: OSError) -> None:
    raise error

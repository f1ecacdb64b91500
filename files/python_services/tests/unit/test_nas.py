from __future__ import annotations

import errno
import os
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from prime_spark.memory import nas as memory_nas
from prime_spark.memory.nas import (
    SENTINEL,
    NASError,
    NASKeyError,
    NASNotFoundError,
    NASStorage,
    NASUnavailableError,
)


@pytest.fixture
def nas(tmp_path: Path) -> NASStorage:
    (tmp_path / SENTINEL).touch()
    return NASStorage(tmp_path)


def test_round_trip(nas: NASStorage, tmp_path: Path) -> None:
    nas.store("notes/one", {"a": [1, None, "ü"]})
    nas.store("voice/hello.wav", b"RIFF\0")
    assert nas.retrieve("notes/one") == {"a": [1, None, "ü"]}
    assert nas.retrieve("voice/hello.wav") == b"RIFF\0"
    assert nas.keys() == ["notes/one", "voice/hello.wav"]
    assert nas.keys("notes/") == ["notes/one"]
    nas.delete("notes/one")
    assert nas.keys() == ["voice/hello.wav"]
    for action in (nas.retrieve, nas.delete):
        with pytest.raises(NASNotFoundError, match="notes/one"):
            action("notes/one")
    assert (tmp_path / SENTINEL).exists()


def test_the_other_kind_replaces(nas: NASStorage) -> None:
    nas.store("key", b"bytes")
    nas.store("key", "json")
    assert nas.retrieve("key") == "json"
    nas.store("key", b"bytes again")
    assert nas.retrieve("key") == b"bytes again"
    assert nas.keys() == ["key"]


@pytest.mark.parametrize(
    "key",
    ["", "/", "/etc/passwd", "..", "../x", "a/../b", "a//b", "a/", ".hidden", SENTINEL, "a\0b",
     "a\nb", "-rf", " a", "x" * 300, "a/" * 600 + "a", "a.json", "ä", "a\\b", "a:b", "a\n"],
)  # fmt: skip
def test_unsafe_keys(nas: NASStorage, key: str) -> None:
    with pytest.raises(NASKeyError):
        nas.store(key, b"x")
    with pytest.raises(NASKeyError):
        nas.retrieve(key)
    with pytest.raises(NASKeyError):
        nas.delete(key)


def test_absent_mount_is_never_written_under(tmp_path: Path) -> None:
    nas = NASStorage(tmp_path)
    actions: list[Callable[[], object]] = [
        lambda: nas.store("a", b"x"),
        lambda: nas.retrieve("a"),
        lambda: nas.delete("a"),
        nas.keys,
    ]
    for action in actions:
        with pytest.raises(NASUnavailableError, match="not mounted"):
            action()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(NASUnavailableError):
        NASStorage(tmp_path / "absent").store("a", b"x")


def test_failed_store_leaves_the_old_object(
    nas: NASStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nas.store("key", b"old")

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(NASError, match="No space left"):
        nas.store("key", b"new")
    assert nas.retrieve("key") == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == [SENTINEL, "key"]


def test_readers_see_old_or_new(nas: NASStorage) -> None:
    values = [b"a" * 100_000, b"b" * 200_000]
    nas.store("key", values[0])
    done = threading.Event()

    def write() -> None:
        for number in range(200):
            nas.store("key", values[number % 2])
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not done.is_set():
        assert nas.retrieve("key") in values
    writer.join()


def test_a_reader_meets_a_store_of_the_other_kind(
    nas: NASStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    nas.store("key", {"old": 1})
    read = memory_nas._read

    def read_after_a_store(path: Path, *arguments: Any) -> bytes:
        if path.name == "key.json":
            monkeypatch.setattr(memory_nas, "_read", read)
            nas.store("key", b"new")
        return read(path, *arguments)

    monkeypatch.setattr(memory_nas, "_read", read_after_a_store)
    assert nas.retrieve("key") == b"new"


def test_the_oldest_objects_go(nas: NASStorage, tmp_path: Path) -> None:
    ours = re.compile("[a-d]")
    assert nas.prune("voice", 10, ours) == 0
    for number, name in enumerate(("b", "c", "a", "d")):
        nas.store(f"voice/{name}", b"x" * 10)
        os.utime(tmp_path / "voice" / name, (number, number))
    nas.store("voice/deeper/old", b"x" * 100)
    nas.store("voice/other", b"x" * 100)
    os.utime(tmp_path / "voice/other", (0, 0))
    nas.store("other", b"x" * 100)
    assert nas.prune("voice", 40, ours) == 0
    assert len(nas.keys("voice/")) == 6, "within the limit"
    assert nas.prune("voice", 29, ours) == 2
    assert nas.keys() == ["other", "voice/a", "voice/d", "voice/deeper/old", "voice/other"]


def test_two_kinds_at_the_same_time_leave_one_of_both(nas: NASStorage) -> None:
    values = ["json", b"bytes"]
    start = threading.Barrier(2)

    def write(value: object) -> None:
        for _ in range(300):
            start.wait(60)
            nas.store("key", value)
            start.wait(60)
            assert nas.retrieve("key") in values

    with ThreadPoolExecutor(2) as pool:
        for writing in [pool.submit(write, value) for value in values]:
            writing.result()
    assert nas.keys() == ["key"]


def test_a_stale_handle_is_tried_again(nas: NASStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    nas.store("key", b"value")
    answers = [OSError(errno.ESTALE, "Stale file handle")] * 3
    read, rename = memory_nas._read, Path.replace

    def stale(real: Callable[..., Any], *arguments: Any) -> Any:
        if answers:
            raise answers.pop()
        return real(*arguments)

    monkeypatch.setattr(memory_nas, "_read", lambda *arguments: stale(read, *arguments))
    assert nas.retrieve("key") == b"value"
    answers += [OSError(errno.ESTALE, "Stale file handle")] * 2
    monkeypatch.setattr(Path, "replace", lambda *arguments: stale(rename, *arguments))
    nas.store("key", b"other")
    assert nas.retrieve("key") == b"other"
    answers += [OSError(errno.ESTALE, "Stale file handle")] * 20
    with pytest.raises(NASError, match="Stale file handle"):
        nas.retrieve("key")


def test_unmounted_while_storing(nas: NASStorage, tmp_path: Path) -> None:
    """What happens after the sentinel was seen still happens on the share."""
    share = tmp_path.with_name("share-elsewhere")
    with nas._share() as root:
        tmp_path.rename(share)  # the mount point is bare now
        tmp_path.mkdir()
        (root / "object").write_bytes(b"x")
    assert (share / "object").exists()
    assert list(tmp_path.iterdir()) == []


def test_key_below_an_object(nas: NASStorage) -> None:
    nas.store("a", b"x")
    with pytest.raises(NASError):
        nas.store("a/b", b"y")
    with pytest.raises(NASNotFoundError):
        nas.retrieve("a/b")


def test_json_that_is_none(nas: NASStorage, tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(NASError, match="not valid JSON"):
        nas.retrieve("bad")
    with pytest.raises(ValueError, match="NaN and infinities"):
        nas.store("key", {"a": float("-inf")})
    with pytest.raises(TypeError):
        nas.store("odd", object())


def test_a_full_share_says_so_where_its_protocol_cannot(
    nas: NASStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nas.store("key", b"old")

    def refuse(_descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(NASError, match="Input/output error"):
        nas.store("key", b"new")
    monkeypatch.setattr(memory_nas, "_free_bytes", lambda _root: 2)
    with pytest.raises(NASError, match="is full: 2 bytes free, 3 needed"):
        nas.store("key", b"new")
    assert nas.retrieve("key") == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == [SENTINEL, "key"]

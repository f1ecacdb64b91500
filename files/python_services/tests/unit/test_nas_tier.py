"""Many at once in tier 2: what is counted is what is there, and no value is lost."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest

from prime_spark.memory.errors import QuotaError
from prime_spark.memory.ledger import Ledger
from prime_spark.memory.nas import SENTINEL, NASStorage
from prime_spark.memory.nas_tier import NasTier
from prime_spark.memory.settings import NasTierConfig
from prime_spark.memory.tier import ENTRY_BYTES, Entry, TierDownError

OWNERS = ("ada", "bob")


@pytest.fixture
def share(tmp_path: Path) -> Path:
    share = tmp_path / "share"
    (share / "memory").mkdir(parents=True)
    (share / SENTINEL).touch()
    return share


def entry(owner: str, size: int, *, json: bool) -> Entry:
    """A value that tells whose it is."""
    text = owner * size
    return Entry(msgspec.json.encode(text) if json else text.encode(), json)


def there(share: Path) -> Counter[str]:
    """What each owner's files on the share count, `*` for all."""
    found: Counter[str] = Counter()
    for path in (share / "memory").iterdir():
        owner = path.read_text().strip('"')[:3]
        for name in (owner, "*"):
            found[name] += path.stat().st_size + ENTRY_BYTES
    return found


def counted(ledger: Ledger) -> Counter[str]:
    """What the ledger has counted for each, as it says when it refuses."""
    found: Counter[str] = Counter()
    for owner in (*OWNERS, "*"):
        limits = {"owner_bytes": 1 << 62, "all_bytes": -1} if owner == "*" else {
            "owner_bytes": -1, "all_bytes": 1 << 62,
        }  # fmt: skip
        with pytest.raises(QuotaError) as caught, ledger.taking("none", owner, 0, **limits):
            pass
        used = int(str(caught.value).split(" take ")[1].split()[0])
        if used:
            found[owner] = used
    return found


@pytest.mark.parametrize("seed", range(5))
def test_what_is_counted_is_what_is_there(share: Path, tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    # Some lie there already, nobody's until they are written again.
    for number in range(4):
        (share / "memory" / f"key{number}").write_bytes(b"ada")
    ledger = Ledger(tmp_path / "memory.sqlite")

    async def main() -> None:
        config = NasTierConfig(
            directory=str(share), user_bytes=5 * ENTRY_BYTES, max_calls=16, timeout_seconds=60
        )
        tier = NasTier(config, ledger)

        async def act() -> None:
            key = f"key{rng.randrange(4)}"
            if rng.random() < 0.25:
                await tier.delete(key)
                return
            owner = rng.choice(OWNERS)
            value = entry(owner, rng.randrange(1, 200), json=rng.random() < 0.5)
            await tier.set(key, value, None, owner)

        async def act_all_at_once() -> None:
            outcomes = await asyncio.gather(*(act() for _ in range(150)), return_exceptions=True)
            assert {type(outcome) for outcome in outcomes} <= {type(None), QuotaError}

        await act_all_at_once()
        for number in range(4):  # so that none is nobody's
            await tier.delete(f"key{number}")
        await act_all_at_once()

    asyncio.run(main())
    assert counted(ledger) == there(share)
    ledger.close()


def test_a_deletion_while_the_files_are_counted(
    share: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (share / "memory" / "old").write_bytes(b"ada")
    ledger = Ledger(tmp_path / "memory.sqlite")
    tier = NasTier(NasTierConfig(directory=str(share), timeout_seconds=60), ledger)
    sizes = NASStorage.sizes
    counting = threading.Event()
    deleted = threading.Event()

    def slow_sizes(storage: NASStorage, folder: str) -> dict[str, int]:
        found = sizes(storage, folder)
        if not counting.is_set():
            counting.set()
            assert deleted.wait(60)
        return found

    monkeypatch.setattr(NASStorage, "sizes", slow_sizes)

    async def main() -> None:
        writing = asyncio.create_task(tier.set("new", entry("bob", 1, json=False), None, "bob"))
        await asyncio.to_thread(counting.wait, 60)
        assert await tier.delete("old")
        deleted.set()
        await writing

    asyncio.run(main())
    assert counted(ledger) == there(share)
    ledger.close()


def test_what_was_given_up_changes_nothing_newer(
    share: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write and a deletion meet a share that hangs; it comes back after a newer write."""
    ledger = Ledger(tmp_path / "memory.sqlite")
    tier = NasTier(NasTierConfig(directory=str(share), timeout_seconds=60), ledger)
    sizes = NASStorage.sizes
    hanging = [threading.Event(), threading.Event()]
    reached = iter(hanging)
    back = threading.Event()

    def sizes_of_a_share_that_hangs(storage: NASStorage, folder: str) -> dict[str, int]:
        if (event := next(reached, None)) is not None:
            event.set()
            assert back.wait(60)
        return sizes(storage, folder)

    monkeypatch.setattr(NASStorage, "sizes", sizes_of_a_share_that_hangs)
    newest = entry("bob", 3, json=False)

    async def main() -> None:
        changes = (tier.set("key", entry("ada", 1, json=False), None, "ada"), tier.delete("key"))
        for change, event in zip(changes, hanging, strict=True):
            asking = asyncio.ensure_future(change)
            assert await asyncio.to_thread(event.wait, 60)
            asking.cancel()
            await asyncio.wait([asking])
        await tier.set("key", newest, None, "bob")
        back.set()
        for thread in threading.enumerate():
            if thread.name == "nas":
                await asyncio.to_thread(thread.join, 60)
        assert await tier.get("key") == newest

    asyncio.run(main())
    assert counted(ledger) == there(share)
    ledger.close()


def test_a_start_counts_again_what_a_crash_left_miscounted(share: Path, tmp_path: Path) -> None:
    """A crash between the count and the file: a longer one was counted, and one that is gone."""
    path = tmp_path / "memory.sqlite"

    def write(*keys: str) -> Ledger:
        ledger = Ledger(path)
        tier = NasTier(NasTierConfig(directory=str(share), timeout_seconds=60), ledger)

        async def main() -> None:
            for key in keys:
                await tier.set(key, entry("ada", 100, json=False), None, "ada")

        asyncio.run(main())
        return ledger

    write("right", "longer", "gone").close()
    (share / "memory" / "longer").write_bytes(b"ada")
    (share / "memory" / "gone").unlink()
    ledger = write("new")
    assert counted(ledger) == there(share)
    ledger.close()


def test_a_share_that_takes_no_file_is_not_well(
    share: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(tmp_path / "memory.sqlite")
    tier = NasTier(NasTierConfig(directory=str(share)), ledger)
    files = sorted(share.rglob("*"))
    real, written = Path.open, 0

    def read_only(path: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if mode != "r" and mode != "rb":
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return real(path, mode, *arguments, **options)

    def writable(path: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        nonlocal written
        written += mode != "r" and mode != "rb"
        return real(path, mode, *arguments, **options)

    monkeypatch.setattr(Path, "open", read_only)
    for _ in range(2):
        with pytest.raises(TierDownError, match="Read-only file system") as caught:
            asyncio.run(tier.check())
        assert caught.value.answers, "it can still be read"
    monkeypatch.setattr(Path, "open", writable)
    for _ in range(3):
        asyncio.run(tier.check())
    assert written == 1, "disks may sleep"
    assert sorted(share.rglob("*")) == files, "nothing stays"
    monkeypatch.setattr(Path, "open", read_only)
    with pytest.raises(TierDownError, match="Read-only file system"):
        asyncio.run(tier.set("key", Entry(b"1", json=True), None, "ada"))
    with pytest.raises(TierDownError, match="Read-only file system"):
        asyncio.run(tier.check())
    ledger.close()

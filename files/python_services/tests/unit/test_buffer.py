from __future__ import annotations

import contextlib
import os
import resource
import shutil
import sqlite3
import struct
import subprocess
import sys
import tempfile
import textwrap
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from prime_spark.telemetry.buffer import BufferBusyError, DiskBuffer

ALL = 1_000_000
PAGE = 4096
LOG_BYTES = 1200 * 1024


def payloads(buffer: DiskBuffer) -> list[bytes]:
    return [record.payload for record in buffer.peek(ALL, ALL)]


def drain(buffer: DiskBuffer) -> list[bytes]:
    """Take all records out, as a sender does."""
    found: list[bytes] = []
    while batch := buffer.peek(100, ALL):
        found += [record.payload for record in batch]
        buffer.ack(batch)
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "buffer"


def test_first_in_first_out(folder: Path) -> None:
    buffer = DiskBuffer(folder, 100_000)
    for number in range(10):
        buffer.append(b"%d" % number)
    first = buffer.peek(3, ALL)
    assert [record.payload for record in first] == [b"0", b"1", b"2"]
    assert buffer.peek(3, ALL) == first, "peek removes nothing"
    buffer.ack(first)
    assert payloads(buffer) == [b"%d" % number for number in range(3, 10)]
    assert len(buffer.peek(ALL, 1)) == 1, "at least one, however large"
    assert len(buffer.peek(ALL, 4)) == 4
    buffer.ack(buffer.peek(ALL, ALL))
    assert payloads(buffer) == []
    assert buffer.stats().records == 0
    buffer.close()


def test_numbers_are_never_given_out_twice(folder: Path) -> None:
    """The probe of the fleet's tests counts samples by them."""
    buffer = DiskBuffer(folder, 100_000)
    buffer.append(b"one")
    before = buffer.peek(1, ALL)
    buffer.ack(before)
    buffer.close()
    buffer = DiskBuffer(folder, 100_000)
    buffer.append(b"two")
    assert buffer.peek(1, ALL)[0].number == before[0].number + 1
    buffer.close()


def test_full_means_oldest_out_and_counted(folder: Path) -> None:
    limit = 40 * PAGE
    buffer = DiskBuffer(folder, limit)
    for number in range(1000):
        buffer.append(b"%0500d" % number)
        assert (folder / "samples.db").stat().st_size <= limit
    left = payloads(buffer)
    assert left == [b"%0500d" % number for number in range(1000 - len(left), 1000)]
    assert len(left) * 500 > limit / 2
    assert buffer.stats().dropped == 1000 - len(left)
    assert (folder / "samples.db-wal").stat().st_size < LOG_BYTES
    with pytest.raises(ValueError, match="does not fit"):
        buffer.append(b"x" * limit)
    buffer.close()


def test_acknowledging_what_was_dropped_meanwhile(folder: Path) -> None:
    buffer = DiskBuffer(folder, 20 * PAGE)
    while not (dropped := buffer.stats().dropped):
        batch = buffer.peek(dropped + 100, ALL)
        buffer.append(b"%0500d" % buffer.stats().records)
    held = len(payloads(buffer))
    buffer.ack(batch)
    assert len(payloads(buffer)) == buffer.stats().records == held - (len(batch) - dropped)
    buffer.ack(batch)
    assert buffer.stats().records == held - (len(batch) - dropped)
    buffer.close()


@pytest.mark.parametrize("damage", ["removed", "garbage", "truncated", "zeroed"])
@pytest.mark.parametrize("running", [True, False])
def test_damaged_files_cost_what_they_held(folder: Path, damage: str, running: bool) -> None:
    buffer = DiskBuffer(folder, 10_000_000)
    for number in range(3000):
        buffer.append(b"%01500d" % number)
    buffer.sync()
    if not running:
        buffer.close()
    for path in folder.iterdir():
        if damage == "removed":
            path.unlink()
        elif damage == "garbage":
            path.write_bytes(b"garbage!" * (path.stat().st_size // 8 + 1))
        elif damage == "truncated":
            os.truncate(path, min(path.stat().st_size, 5000))
        elif path.name == "samples.db":
            with path.open("r+b") as file:
                file.seek(20 * PAGE)
                file.write(bytes(path.stat().st_size - 20 * PAGE))
    if not running:
        buffer = DiskBuffer(folder, 10_000_000)
    buffer.append(b"new")
    drain(buffer)
    buffer.append(b"newer")
    assert drain(buffer)[-1] == b"newer", "shipping goes on"
    stats = buffer.stats()
    assert stats.records == 0
    if running or damage != "removed":
        assert stats.damaged == 1
    if running:
        assert stats.dropped > 0
    buffer.append(b"next")
    assert (payloads(buffer), buffer.stats().in_memory) == ([b"next"], 0), "on disk again"
    assert buffer.stats().error == ""
    buffer.close()


def test_a_damaged_schema_is_set_aside(folder: Path) -> None:
    """SQLite says what is corrupt in more bits than the first eight."""
    buffer = DiskBuffer(folder, 100_000)
    buffer.append(b"old")
    buffer.close()
    with contextlib.closing(sqlite3.connect(folder / "samples.db")) as db:
        db.execute("PRAGMA writable_schema = ON")
        wrong = "CREATE TABLE sqlite_sequence(name, seq, more)"
        db.execute("UPDATE sqlite_master SET sql = ? WHERE name = 'sqlite_sequence'", (wrong,))
        db.commit()
    buffer = DiskBuffer(folder, 100_000)
    buffer.append(b"first")
    assert buffer.stats().damaged == 1
    buffer.append(b"second")
    assert (payloads(buffer), buffer.stats().in_memory) == ([b"first", b"second"], 0)
    buffer.close()


def test_no_directory_means_memory(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.write_text("a file where the directory should be")
    buffer = DiskBuffer(place / "buffer", 100_000, memory_records=4)
    for number in range(6):
        buffer.append(b"%d" % number)
    stats = buffer.stats()
    assert (stats.records, stats.in_memory, stats.dropped) == (4, 4, 2)
    assert "Not a directory" in stats.error
    buffer.ack(buffer.peek(1, ALL))
    assert payloads(buffer) == [b"3", b"4", b"5"]
    batch = buffer.peek(2, ALL)
    place.unlink()
    buffer.append(b"6")
    assert payloads(buffer) == [b"3", b"4", b"5", b"6"], "on disk as soon as it takes them"
    assert buffer.stats().in_memory == 0
    buffer.ack(batch)  # its records have other numbers by now: they are sent again
    assert payloads(buffer) == [b"3", b"4", b"5", b"6"]
    buffer.close()


@contextlib.contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """A disk that is full, as far as this process can tell."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("acknowledged", [1, 2, 4])
def test_full_disk_keeps_the_newest_in_memory_and_order(folder: Path, acknowledged: int) -> None:
    buffer = DiskBuffer(folder, 100_000, memory_records=5)
    buffer.append(b"0000")
    buffer.append(b"0001")
    with files_no_larger_than((folder / "samples.db-wal").stat().st_size):
        for number in range(2, 10):
            buffer.append(b"%04d" % number)
        stats = buffer.stats()
        assert (stats.records, stats.in_memory, stats.dropped) == (7, 5, 3)
        assert "disk" in stats.error
        found = []
        while len(found) < acknowledged:
            batch = buffer.peek(acknowledged - len(found), ALL)
            found += [record.payload for record in batch]
            buffer.ack(batch)
        expected = [b"%04d" % number for number in (0, 1, 5, 6, 7, 8, 9)]
        assert found == expected[:acknowledged]
        assert buffer.stats().records == 7 - acknowledged
    buffer.append(b"back")
    assert buffer.stats().in_memory == 0
    assert payloads(buffer) == [*expected[acknowledged:], b"back"]
    buffer.close()


def test_one_process_at_a_time(folder: Path) -> None:
    buffer = DiskBuffer(folder, 100_000)
    with pytest.raises(BufferBusyError):
        DiskBuffer(folder, 100_000)
    buffer.close()
    DiskBuffer(folder, 100_000).close()


def test_lowered_limit_applies_with_the_next_record(folder: Path) -> None:
    buffer = DiskBuffer(folder, 1_000_000)
    for number in range(1000):
        buffer.append(b"%0500d" % number)
    buffer.close()
    buffer = DiskBuffer(folder, 100_000)
    buffer.append(b"newest")
    assert buffer.stats().bytes <= 100_000
    assert payloads(buffer)[-1] == b"newest"
    buffer.close()


def test_segments_of_earlier_releases_are_taken_over(folder: Path) -> None:
    def frame(number: int, payload: bytes) -> bytes:
        packed = struct.pack("<Q", number)
        return struct.pack("<II", len(payload), zlib.crc32(payload, zlib.crc32(packed))) + packed

    folder.mkdir()
    for first in (0, 3, 6):
        data = b"".join(
            frame(number, b"%d" % number) + b"%d" % number for number in range(first, first + 3)
        )
        (folder / f"{first:020d}.segment").write_bytes(data[: 50 if first == 6 else None])
    cursor = struct.pack("<Q", 2)
    (folder / "cursor").write_bytes(cursor + struct.pack("<I", zlib.crc32(cursor)))
    buffer = DiskBuffer(folder, 100_000)
    buffer.append(b"new")
    assert payloads(buffer) == [b"2", b"3", b"4", b"5", b"6", b"7", b"new"]
    assert {path.name for path in folder.iterdir()} == {"samples.db", "samples.db-wal"}
    buffer.close()


def test_kill_9_loses_nothing_that_was_appended(folder: Path) -> None:
    program = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        from prime_spark.telemetry.buffer import DiskBuffer

        buffer = DiskBuffer(Path(sys.argv[1]), 10_000_000)
        print("open", flush=True)
        number = 0
        while True:
            buffer.append(b"%d" % number)
            print(number, flush=True)
            if number % 7 == 6:
                batch = buffer.peek(3, 1_000_000)
                buffer.ack(batch)
                print("ack", batch[-1].payload.decode(), flush=True)
            number += 1
        """
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    lines: list[str] = []
    for line in process.stdout:
        lines.append(line)
        if len(lines) == 3000:
            process.kill()
            break
    lines += process.stdout.read().splitlines()
    process.wait()
    appended = [int(line) for line in lines if line.strip().isdigit()]
    acknowledged = int([line for line in lines if line.startswith("ack")][-1].split()[1])
    buffer = DiskBuffer(folder, 10_000_000)
    found = [int(payload) for payload in payloads(buffer)]
    # One more acknowledgement and one more record may have got through before their lines did.
    assert found[0] - acknowledged - 1 in {0, 3}
    assert found == list(range(found[0], found[-1] + 1))
    assert found[-1] - appended[-1] in {0, 1}
    assert buffer.stats().damaged == 0
    buffer.close()


def test_threads_do_not_get_in_each_others_way(folder: Path) -> None:
    buffer = DiskBuffer(folder, 10_000_000)
    seen: list[bytes] = []

    def take() -> None:
        while len(seen) < 2000:
            batch = buffer.peek(17, ALL)
            seen.extend(record.payload for record in batch)
            buffer.ack(batch)
            buffer.sync()

    reader = threading.Thread(target=take)
    reader.start()
    for number in range(2000):
        buffer.append(b"%d" % number)
    reader.join(timeout=60)
    assert seen == [b"%d" % number for number in range(2000)]
    buffer.close()


class BufferMachine(RuleBasedStateMachine):
    """Any sequence of operations and crashes against a plain list."""

    LIMIT = 14 * PAGE

    @initialize()
    def start(self) -> None:
        self.root = tempfile.TemporaryDirectory()
        self.folder = Path(self.root.name) / "0"
        self.expected: list[bytes] = []
        self.number = 0
        self.open()

    def open(self) -> None:
        self.buffer = DiskBuffer(self.folder, self.LIMIT, memory_records=4)
        self.lost_before = 0

    def take_losses(self) -> None:
        lost = self.buffer.stats().dropped - self.lost_before
        self.lost_before += lost
        del self.expected[:lost]

    @rule(size=st.integers(min_value=0, max_value=6000))
    def append(self, size: int) -> None:
        payload = b"%d:" % self.number + b"x" * size
        self.number += 1
        self.buffer.append(payload)
        self.expected.append(payload)
        self.take_losses()

    @rule(count=st.integers(min_value=1, max_value=10), part=st.integers(min_value=0, max_value=10))
    def ack(self, count: int, part: int) -> None:
        batch = self.buffer.peek(count, ALL)
        assert [record.payload for record in batch] == self.expected[:count]
        batch = batch[:part]
        self.buffer.ack(batch)
        del self.expected[: len(batch)]

    @rule()
    def ack_late(self) -> None:
        batch = self.buffer.peek(3, ALL)
        for _ in range(4):
            self.append(3000)
        survivors = self.buffer.peek(1, ALL)[0].number
        self.buffer.ack(batch)
        del self.expected[: sum(record.number >= survivors for record in batch)]

    @rule(torn=st.binary(max_size=40))
    def crash_and_restart(self, torn: bytes) -> None:
        """What a killed process leaves, and a torn last write."""
        left = self.folder.with_name(f"{int(self.folder.name) + 1}")
        shutil.copytree(self.folder, left)
        with (left / "samples.db-wal").open("ab") as file:
            file.write(torn)
        self.buffer.close()
        self.folder = left
        self.open()

    @rule()
    def restart(self) -> None:
        self.buffer.close()
        self.open()

    @precondition(lambda self: hasattr(self, "buffer"))
    @invariant()
    def agrees(self) -> None:
        stats = self.buffer.stats()
        assert payloads(self.buffer) == self.expected
        assert (stats.records, stats.damaged, stats.error) == (len(self.expected), 0, "")
        assert (self.folder / "samples.db").stat().st_size <= self.LIMIT

    def teardown(self) -> None:
        if hasattr(self, "buffer"):
            self.buffer.close()
            self.root.cleanup()


TestAnyHistory = BufferMachine.TestCase
TestAnyHistory.settings = settings(max_examples=30, stateful_step_count=40, deadline=None)

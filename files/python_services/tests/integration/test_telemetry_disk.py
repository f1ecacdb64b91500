"""The collector on a disk that is full, read-only or wiped: a tmpfs in a mount namespace."""

from __future__ import annotations

import itertools
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.integration.servers import KafkaServer

from prime_spark.events import Telemetry, decode, encode
from prime_spark.telemetry.buffer import DiskBuffer
from support import (
    Command,
    Daemon,
    eventually,
    free_port,
    kafka_admin,
    kafka_config,
    read_all,
    running,
)

_numbers = itertools.count(1)
DISK_BYTES = 1024 * 1024


@dataclass
class Disk:
    """A small disk at `path`, seen only by what runs in the namespace of process `pid`."""

    path: Path
    pid: int

    @property
    def outside(self) -> Path:
        """The same place, from here."""
        return Path(f"/proc/{self.pid}/root{self.path}")

    def fill(self) -> None:
        with suppress(OSError), (self.outside / "filler").open("ab", buffering=0) as file:
            for size in (4096, 1):
                with suppress(OSError):
                    while file.write(b"x" * size):
                        pass

    def clear(self) -> None:
        (self.outside / "filler").unlink()

    def remount(self, options: str) -> None:
        enter = ["nsenter", f"--mount=/proc/{self.pid}/ns/mnt", "--"]
        subprocess.run([*enter, "mount", "-o", f"remount,{options}", self.path], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    path = tmp_path / "disk"
    path.mkdir()
    script = f"mount -t tmpfs -o size={DISK_BYTES} tmpfs {path} && echo ready && exec sleep inf"
    holder = subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", script], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "ready\n"
        yield Disk(path, holder.pid)
    finally:
        holder.kill()
        holder.wait()


@dataclass
class OnDisk(Command):
    """A command in the mount namespace of a disk."""

    pid: int = 0
    limits: tuple[str, ...] = ()

    def arguments(self) -> list[str]:
        return [
            *("nsenter", f"--mount=/proc/{self.pid}/ns/mnt", f"--wd={self.folder}", "--"),
            *self.limits,
            *super().arguments(),
        ]


@pytest.fixture
def command(kafka: KafkaServer, tmp_path: Path, disk: Disk) -> OnDisk:
    topic = f"d{next(_numbers)}.telemetry"
    kafka_admin(kafka, tmp_path, topics={topic: {"partitions": 1}}).answer("apply")
    config: dict[str, Any] = {
        "device_id": "host-1",
        "interval_seconds": 0.1,
        "topic": topic,
        "kafka": kafka_config(kafka, kafka.admin_username),
        "buffer": {"path": str(disk.path / "buffer"), "max_bytes": 1024 * 1024},
        "http": {"host": "127.0.0.1", "port": free_port()},
    }
    return OnDisk("telemetry", tmp_path, config, {"kafka_password": kafka.admin_password}, disk.pid)


def value(daemon: Daemon, name: str) -> float:
    return daemon.metric(f"prime_spark_telemetry_{name}")


def test_full_disk_and_kill(kafka: KafkaServer, command: OnDisk, disk: Disk) -> None:
    kafka.stop()
    try:
        with running(command) as telemetry:
            eventually(lambda: value(telemetry, "buffer_records") >= 10)
            disk.fill()
            eventually(lambda: value(telemetry, "buffer_memory_records") >= 5, what="in memory")
            assert telemetry.health()["http"] == 200
            disk.clear()
            eventually(
                lambda: value(telemetry, "buffer_memory_records") == 0, what="back on the disk"
            )
            assert value(telemetry, "dropped_samples") == 0
            safe = value(telemetry, "buffer_records")

            disk.fill()
            eventually(lambda: value(telemetry, "buffer_memory_records") >= 3)
            telemetry.kill()  # takes along what the disk has not taken, nothing else
            telemetry.start()
            eventually(lambda: value(telemetry, "buffer_records") >= safe + 3, what="recovered")
            kafka.start()
            eventually(lambda: value(telemetry, "buffer_records") <= 1, 60, "drained, disk full")
            disk.clear()
            taken = value(telemetry, "samples_total")
            eventually(lambda: value(telemetry, "sent_total") >= safe + taken, 30)
            assert value(telemetry, "damaged_buffers") == 0
            assert value(telemetry, "dropped_samples") == 0
            assert telemetry.terminate() == 0
    finally:
        if not kafka.running:
            kafka.start()
    records = read_all(kafka, command.config["topic"], 1)
    times = [decode(record.value, Telemetry).time for record in records]
    assert times == sorted(set(times)), "each once, in order"
    assert len(times) >= safe + taken


def test_shipping_goes_on_without_a_disk(kafka: KafkaServer, command: OnDisk, disk: Disk) -> None:
    """Started on a read-only disk, emptied under the collector: what is taken arrives."""
    disk.remount("ro")
    with running(command) as telemetry:
        eventually(lambda: value(telemetry, "sent_total") >= 10, 60, what="read-only")
        health = telemetry.health()
        assert (health["http"], health["status"]) == (200, "degraded")
        assert "Read-only file system" in health["components"]["disk"]["detail"]
        disk.remount("rw")
        eventually(telemetry.healthy)

        for path in (disk.outside / "buffer").iterdir():
            path.unlink()
        before = value(telemetry, "sent_total")
        eventually(lambda: value(telemetry, "sent_total") >= before + 10, what="emptied")
        assert value(telemetry, "damaged_buffers") == 1
        eventually(telemetry.healthy)
        assert (disk.outside / "buffer" / "samples.db").exists()
        assert telemetry.terminate() == 0
    assert "samples lost" in telemetry.log.read_text()
    assert "the disk takes none" in telemetry.log.read_text()


def test_long_backlog_is_replayed_in_little_memory(
    kafka: KafkaServer, command: OnDisk, tmp_path: Path
) -> None:
    """Weeks of samples, in the memory a Raspberry Pi can spare: a hard limit of 128 MiB of data."""
    waiting = 50_000
    command.config["buffer"] = {"path": str(tmp_path / "backlog"), "max_bytes": 64 * 1024 * 1024}
    command.config["interval_seconds"] = 1.0
    command.limits = ("prlimit", f"--data={128 * 2**20}", "--")
    buffer = DiskBuffer(tmp_path / "backlog", 64 * 1024 * 1024)
    payload = encode(
        Telemetry(
            time=decode(b'{"time":"2026-03-01T00:00:00Z","device_id":"h","metrics":{"a":1}}',
                        Telemetry).time,
            device_id="host-1",
            metrics={"cpu_percent": 1.5, "memory_percent": 2.5, "load_avg": 0.5},
        )
    )  # fmt: skip
    for number in range(waiting):
        buffer.append(payload.replace(b'"host-1"', b'"h-%06d"' % number))
    buffer.close()
    with running(command) as telemetry:
        eventually(lambda: value(telemetry, "sent_total") >= waiting, 60, "replayed")
        assert telemetry.process is not None
        status = Path(f"/proc/{telemetry.process.pid}/status").read_text()
        (peak,) = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")]
        assert int(peak) < 128 * 1024
        assert telemetry.terminate() == 0
    records = read_all(kafka, command.config["topic"], 1)[:waiting]
    names = [decode(record.value, Telemetry).device_id for record in records]
    assert names == [f"h-{number:06d}" for number in range(waiting)]

"""What the collector costs a small host: `make bench-telemetry`.

Runs prime-spark-telemetry on one processor with at most 128 MiB of data: first sampling several
times a second, for the CPU time of one sample; then with a long backlog, for the rate and the
memory of its replay.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from tests.integration.servers import KafkaServer, kafka_server

from prime_spark.events import Telemetry, encode
from prime_spark.telemetry.buffer import DiskBuffer
from support import Command, Daemon, eventually, free_port, kafka_admin, kafka_config, running

TOPIC = "edge.telemetry"
DATA_BYTES = 128 * 2**20
BUFFER_BYTES = 64 * 2**20
INTERVAL = 0.2
PRODUCTION_INTERVAL = 30.0


class Limited(Command):
    """A command on one processor, with little memory."""

    def arguments(self) -> list[str]:
        return ["taskset", "--cpu-list", "0", "prlimit", f"--data={DATA_BYTES}", "--",
                *super().arguments()]  # fmt: skip


def command(kafka: KafkaServer, folder: Path, interval: float) -> Limited:
    config: dict[str, Any] = {
        "device_id": "bench",
        "interval_seconds": interval,
        "topic": TOPIC,
        "kafka": kafka_config(kafka, kafka.admin_username),
        "buffer": {"path": str(folder / "buffer"), "max_bytes": BUFFER_BYTES},
        "http": {"host": "127.0.0.1", "port": free_port()},
    }
    return Limited("telemetry", folder, config, {"kafka_password": kafka.admin_password})


def peak(telemetry: Daemon) -> float:
    """Return the most memory the process has had, in MiB."""
    assert telemetry.process is not None
    for line in Path(f"/proc/{telemetry.process.pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise AssertionError("no VmHWM")


def cpu(telemetry: Daemon) -> float:
    return telemetry.cpu_seconds()


def sampling(kafka: KafkaServer, folder: Path, seconds: float) -> str:
    """Print the cost of a sample; return it as pairs."""
    taken = "prime_spark_telemetry_samples_total"
    with running(command(kafka, folder, INTERVAL)) as telemetry:
        eventually(telemetry.healthy, 60)
        started, used = telemetry.metric(taken), cpu(telemetry)
        time.sleep(seconds)
        samples, used = telemetry.metric(taken) - started, cpu(telemetry) - used
        each = used / samples
        most = peak(telemetry)
        say(
            f"sampling: {each * 1000:.1f} ms of CPU per sample taken, buffered and sent = "
            f"{each / PRODUCTION_INTERVAL:.3%} of one processor every {PRODUCTION_INTERVAL:g} s, "
            f"{most:.0f} MiB at its peak"
        )
        return f"sample_cpu_ms={each * 1000:.1f} sampling_peak_mib={most:.0f}"


def replay(kafka: KafkaServer, folder: Path, waiting: int) -> str:
    """Print the rate of a replay; return it as pairs."""
    buffer = DiskBuffer(folder / "buffer", BUFFER_BYTES)
    start = datetime.now(UTC) - timedelta(seconds=waiting * PRODUCTION_INTERVAL)
    names = ("cpu_percent", "memory_percent", "disk_percent", "temperature", "load_avg")
    for number in range(waiting):
        buffer.append(
            encode(
                Telemetry(
                    time=start + timedelta(seconds=number * PRODUCTION_INTERVAL),
                    device_id="bench",
                    metrics=dict.fromkeys(names, number % 1000 / 10),
                )
            )
        )
    size = buffer.stats().bytes / 2**20
    buffer.close()
    sent = "prime_spark_telemetry_sent_total"
    with running(command(kafka, folder, PRODUCTION_INTERVAL)) as telemetry:
        eventually(lambda: telemetry.metric(sent) > 0, 60)
        first, used, started = telemetry.metric(sent), cpu(telemetry), time.monotonic()
        eventually(lambda: telemetry.metric(sent) >= waiting, 300, "replayed")
        seconds, count = time.monotonic() - started, telemetry.metric(sent) - first
        days = waiting * PRODUCTION_INTERVAL / 86_400
        each, most = (cpu(telemetry) - used) / count * 1e6, peak(telemetry)
        say(
            f"replay: {waiting} samples ({days:.0f} days, {size:.0f} MiB on disk) at "
            f"{count / seconds:,.0f} samples/s, {each:.0f} microseconds of CPU each, "
            f"{most:.0f} MiB at its peak"
        )
        return (
            f"replay_samples={waiting} replay_samples_per_second={count / seconds:.0f}"
            f" replay_cpu_us={each:.0f} replay_peak_mib={most:.0f}"
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20, help="how long to sample (20)")
    parser.add_argument("--waiting", type=int, default=150_000, help="samples to replay (150000)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, kafka_server() as kafka:
        folder = Path(name)
        kafka_admin(kafka, folder, topics={TOPIC: {"partitions": 3}}).answer("apply")
        for place in ("sampling", "replay"):
            (folder / place).mkdir()
        sampled = sampling(kafka, folder / "sampling", arguments.seconds)
        say(f"{sampled} {replay(kafka, folder / 'replay', arguments.waiting)}")


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()

"""prime-spark-simulate: sends the telemetry of a simulated fleet through the real producer."""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from prime_spark import __version__
from prime_spark.config import ConfigError, KafkaConfig, TopicName, fail, read_credential
from prime_spark.events import Telemetry
from prime_spark.kafka.clients import describe
from prime_spark.kafka.producer import KAFKA_ERRORS, TOPIC_REFUSALS, Producer, Record
from prime_spark.runtime.backoff import Backoff
from prime_spark.simulate.fleet import Message, messages

_CONFIG = Path("/etc/prime-spark/telemetry/config.json")
_ROUND_SECONDS = 0.1
_ROUND_MESSAGES = 5_000
_PROGRESS_SECONDS = 1.0
_GIVE_UP_SECONDS = 60.0
_REAL_INTERVAL = 30.0

_EPILOG = """\
Every device is named sim-NNNN, so what a run has stored is easy to find and to remove:
  DELETE FROM device_metrics WHERE device_id LIKE 'sim-%';

examples:
  prime-spark-simulate --devices 200 --rate 50 --seconds 600
  prime-spark-simulate --devices 1000 --rate 0 --count 1200000     as fast as it goes
  prime-spark-simulate --count 3 --faults 0.5 --dry-run            look at what would be sent
"""


class SimulateConfig(msgspec.Struct, frozen=True):
    """What is read from the configuration; that of prime-spark-telemetry has it all."""

    kafka: KafkaConfig
    topic: TopicName = Telemetry.topic


@dataclass
class Sent:
    """What Kafka has acknowledged."""

    started: float = field(default_factory=time.monotonic)
    messages: int = 0
    rows: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    retries: int = 0

    def add(self, message: Message) -> None:
        """Count an acknowledged message."""
        self.messages += 1
        self.rows += message.rows
        if message.fault is not None:
            self.faults[message.fault] += 1

    @property
    def seconds(self) -> float:
        """Time since the start."""
        return time.monotonic() - self.started


def main(argv: Sequence[str] | None = None) -> int:
    """Console entry point."""
    arguments = _parser().parse_args(argv)
    if arguments.seconds is None and arguments.count is None:
        fail("say how long: --seconds or --count")
    if arguments.seconds is not None and arguments.dry_run and arguments.count is None:
        fail("--dry-run prints --count messages; --seconds has no meaning for it")
    stream = _stream(arguments)
    if arguments.dry_run:
        return _dry_run(stream)
    config = _load(arguments.config)
    try:
        return asyncio.run(_run(config, arguments, stream))
    except (*KAFKA_ERRORS, ConfigError) as error:
        servers = ", ".join(config.kafka.bootstrap_servers)
        sys.stderr.write(
            f"error: topic {config.topic!r} on Kafka at {servers}, user "
            f"{config.kafka.username!r}: {describe(error)}\n"
        )
        return 3


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="prime-spark-simulate",
        description="Send the telemetry of a simulated fleet to Kafka, for load and demonstration.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--devices", type=_positive, default=20, help="how many devices (20)")
    parser.add_argument(
        "--rate",
        type=_rate,
        default=10.0,
        help="messages per second of all devices; 0: no limit (10)",
    )
    parser.add_argument("--seconds", type=_rate, help="stop after so long")
    parser.add_argument("--count", type=_positive, help="stop after so many messages")
    parser.add_argument(
        "--seed", type=int, default=1, help="another fleet; the same seed, the same values (1)"
    )
    parser.add_argument(
        "--start",
        type=_moment,
        help="time of the first samples, RFC 3339 (now); with it, equal arguments send equal bytes",
    )
    parser.add_argument(
        "--faults",
        type=_share,
        default=0.0,
        help="share of messages that cannot be stored, 0 to 1 (0)",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print the messages, one a line; connect to nothing"
    )
    parser.add_argument(
        "--config",
        type=Path,
        default=_CONFIG,
        help=f"JSON with `kafka` and `topic`, that of prime-spark-telemetry say ({_CONFIG}); "
        "credentials are read from $CREDENTIALS_DIRECTORY or from `credentials` beside it",
    )
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _rate(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 on")
    return value


def _share(text: str) -> float:
    if (value := _rate(text)) > 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not between 0 and 1")
    return value


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time (2026-03-01T00:00:00Z)") from None
    if moment.tzinfo is None:
        raise argparse.ArgumentTypeError(f"{text!r} has no time zone (append Z)")
    return moment.astimezone(UTC)


def _stream(arguments: argparse.Namespace) -> Iterator[Message]:
    # Each device at its turn: at the given rate that is how far apart its samples really are.
    interval = arguments.devices / arguments.rate if arguments.rate else _REAL_INTERVAL
    stream = messages(
        devices=arguments.devices,
        start=arguments.start or datetime.now(UTC),
        interval=interval,
        seed=arguments.seed,
        faults=arguments.faults,
    )
    return itertools.islice(stream, arguments.count)


def _dry_run(stream: Iterator[Message]) -> int:
    try:
        for message in stream:
            sys.stdout.buffer.write(message.value + b"\n")
        sys.stdout.flush()
    except BrokenPipeError:  # `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _load(path: Path) -> SimulateConfig:
    beside = path.parent / "credentials"
    if "CREDENTIALS_DIRECTORY" not in os.environ and beside.is_dir():
        os.environ["CREDENTIALS_DIRECTORY"] = str(beside)
    try:
        config = msgspec.json.decode(path.read_bytes(), type=SimulateConfig)
        read_credential(config.kafka.credential)
    except OSError as error:
        fail(f"cannot read the configuration: {error}")
    except msgspec.MsgspecError as error:
        fail(f"{path}: {error}")
    except ConfigError as error:
        fail(str(error))
    return config


async def _run(
    config: SimulateConfig, arguments: argparse.Namespace, stream: Iterator[Message]
) -> int:
    """Send until the end or a signal, then say what was sent."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    producer = Producer(
        config.kafka, "prime-spark-simulate", max_batch_bytes=256 * 1024, compression=None
    )
    try:
        await producer.connect()  # fails at once rather than after the first round
        sent = await _send_all(producer, config.topic, stream, arguments, stop)
    finally:
        await producer.discard()
    _print_summary(sent, arguments, complete=not stop.is_set())
    return 0


async def _send_all(
    producer: Producer,
    topic: str,
    stream: Iterator[Message],
    arguments: argparse.Namespace,
    stop: asyncio.Event,
) -> Sent:
    sent = Sent()
    shown = 0.0
    while not stop.is_set():
        if arguments.seconds is not None and sent.seconds >= arguments.seconds:
            break
        due = _ROUND_MESSAGES
        if arguments.rate:
            due = min(due, int(arguments.rate * sent.seconds) + 1 - sent.messages)
        if due > 0:
            batch = list(itertools.islice(stream, due))
            if not batch:
                break
            await _deliver(producer, topic, batch, sent)
        if due < _ROUND_MESSAGES:  # in time: wait for the next messages to be due
            await asyncio.sleep(min(_ROUND_SECONDS, 1 / arguments.rate))
        if sent.seconds - shown >= _PROGRESS_SECONDS and sys.stderr.isatty():
            shown = sent.seconds
            sys.stderr.write(
                f"\r{sent.messages:,} messages, {sent.messages / sent.seconds:,.0f}/s "
            )
            sys.stderr.flush()
    if shown:
        sys.stderr.write("\n")
    return sent


async def _deliver(producer: Producer, topic: str, batch: Sequence[Message], sent: Sent) -> None:
    """Send `batch` until Kafka has all of it; raises one of KAFKA_ERRORS after a minute without."""
    backoff = Backoff(first=0.25, limit=5.0)
    deadline = time.monotonic() + _GIVE_UP_SECONDS
    waiting = list(batch)
    while True:
        try:
            errors = await producer.send_all(
                [Record(topic, message.value, message.key) for message in waiting]
            )
        except KAFKA_ERRORS as failed:
            errors = [failed] * len(waiting)
        for message, error in zip(waiting, errors, strict=True):
            if error is None:
                sent.add(message)
        waiting = [message for message, error in zip(waiting, errors, strict=True) if error]
        if not waiting:
            return
        failure = next(filter(None, errors))
        if isinstance(failure, TOPIC_REFUSALS) or time.monotonic() > deadline:
            raise failure
        sent.retries += 1
        await producer.discard()
        await asyncio.sleep(backoff.next())


def _print_summary(sent: Sent, arguments: argparse.Namespace, *, complete: bool) -> None:
    seconds = max(sent.seconds, 1e-9)
    content = {
        "messages": sent.messages,
        "rows": sent.rows,
        "faults": dict(sorted(sent.faults.items())),
        "seconds": round(seconds, 3),
        "messages_per_second": round(sent.messages / seconds, 1),
        "retries": sent.retries,
        "complete": complete,
    }
    if arguments.json:
        sys.stdout.write(msgspec.json.encode(content).decode() + "\n")
        return
    faults = ", ".join(f"{count} {kind}" for kind, count in sorted(sent.faults.items()))
    sys.stdout.write(
        f"{sent.messages:,} messages of {arguments.devices} devices in {seconds:.1f} s "
        f"({sent.messages / seconds:,.0f}/s), {sent.rows:,} rows to be stored"
        f"{', broken: ' + faults if faults else ''}"
        f"{'' if complete else '; stopped early'}\n"
    )

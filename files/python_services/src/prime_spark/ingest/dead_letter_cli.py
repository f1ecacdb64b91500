"""prime-spark-ingest dlq: look at dead letters, and store those that can be stored by now.

Nothing is ever taken out of the dead-letter topic; its retention does that.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import os
import sys
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
from aiokafka.errors import UnknownTopicOrPartitionError

from prime_spark.config import ConfigError, check_credentials, fail, load_config
from prime_spark.events import check_not_ancient, check_not_future, decode
from prime_spark.ingest.dead_letter_reader import NUMBER, Letter, read_letters
from prime_spark.ingest.settings import IngestConfig
from prime_spark.kafka.clients import describe
from prime_spark.kafka.producer import KAFKA_ERRORS
from prime_spark.timeseries.connection import (
    DATABASE_ERRORS,
    describe_database_error,
    is_data_error,
)
from prime_spark.timeseries.rows import Rows, encode_rows
from prime_spark.timeseries.writer import Writer

_CONFIG = Path("/etc/prime-spark/ingest/config.json")
_MAX_REASON = 60

_EPILOG = """\
examples:
  prime-spark-ingest dlq list --reason future
  prime-spark-ingest dlq show 0:17
  prime-spark-ingest dlq show 0:17 --raw > message
  prime-spark-ingest dlq replay --topic edge.telemetry --dry-run

exit status: 0 done, 1 some letters still cannot be stored (replay) or there is no such letter
(show), 2 wrong usage or configuration, 3 Kafka or the database cannot be used
"""


def main(argv: Sequence[str]) -> int:
    """Run one of the commands; return the exit status."""
    arguments = _parser().parse_args(argv)
    config = _load(arguments.config)
    commands = {"list": _list, "show": _show, "replay": _replay}
    try:
        status = asyncio.run(commands[arguments.command](config, arguments))
        sys.stdout.flush()
    except BrokenPipeError:  # `| head`; an OSError, as those of Kafka are
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except UnknownTopicOrPartitionError:
        return _failed(
            f"no topic {config.dead_letter_topic!r}, or {config.kafka.username!r} may not read it"
        )
    except KAFKA_ERRORS as error:
        servers = ", ".join(config.kafka.bootstrap_servers)
        return _failed(f"Kafka at {servers}: {describe(error)}")
    except _DatabaseError as error:
        where = f"{config.database.host}:{config.database.port}/{config.database.name}"
        return _failed(f"database {where}: {error}; what was stored stays, replay again")
    except KeyboardInterrupt:
        return _failed("interrupted; what was stored stays, replay again")
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="prime-spark-ingest dlq",
        description="Look at the messages that could not be stored, and store them when they can "
        "be. Nothing is removed from the dead-letter topic.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="list|show|replay")
    listing = commands.add_parser("list", help="one line per dead letter, then how many there are")
    show = commands.add_parser("show", help="one dead letter with its message")
    show.add_argument("id", type=_letter_id, help="PARTITION:OFFSET, the first column of `list`")
    show.add_argument(
        "--raw", action="store_true", help="write the message's bytes, and nothing else"
    )
    replay = commands.add_parser(
        "replay",
        help="store the messages that can be stored by now; one that was stored adds nothing",
    )
    replay.add_argument(
        "--dry-run", action="store_true", help="say what would be tried, touch no database"
    )
    for command in (listing, show, replay):
        command.add_argument(
            "--config", type=Path, default=_CONFIG, help=f"configuration of ingest ({_CONFIG})"
        )
        command.add_argument("--json", action="store_true", help="print JSON, one object per line")
    for command in (listing, replay):
        command.add_argument("--topic", help="only messages of this topic")
        command.add_argument("--reason", help="only reasons that contain this text, any case")
        command.add_argument(
            "--offset",
            type=_offset_range,
            metavar="N|N-M",
            help="only messages whose offset in their own topic is N, or from N to M",
        )
    return parser


def _letter_id(text: str) -> str:
    number, _, offset = text.partition(":")
    if not (NUMBER.fullmatch(number) and NUMBER.fullmatch(offset)):
        raise argparse.ArgumentTypeError(f"{text!r} is not PARTITION:OFFSET, 0:17 say")
    return f"{int(number)}:{int(offset)}"


def _offset_range(text: str) -> range:
    first, dash, last = text.partition("-")
    if not NUMBER.fullmatch(first) or (dash and not NUMBER.fullmatch(last)):
        raise argparse.ArgumentTypeError(f"{text!r} is neither N nor N-M")
    found = range(int(first), int(last if dash else first) + 1)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is an empty range")
    return found


def _load(path: Path) -> IngestConfig:
    # systemd hands the credentials to the service alone; they lie beside its configuration.
    beside = path.parent / "credentials"
    if "CREDENTIALS_DIRECTORY" not in os.environ and beside.is_dir():
        os.environ["CREDENTIALS_DIRECTORY"] = str(beside)
    try:
        config = load_config(path, IngestConfig)
        check_credentials(config)
    except ConfigError as error:
        fail(str(error))
    return config


def _failed(message: str) -> int:
    sys.stderr.write(f"error: {message}\n")
    return 3


# -- list and show ----------------------------------------------------------------------------


async def _list(config: IngestConfig, arguments: argparse.Namespace) -> int:
    topics: Counter[str] = Counter()
    async for letters in _chosen(config, arguments):
        for letter in letters:
            topics[letter.topic] += 1
            if arguments.json:
                _print_json(letter.summary())
            else:
                moment = letter.buried.isoformat(sep=" ", timespec="seconds")[:19]
                place = f"{letter.topic}/{letter.partition}/{letter.source_offset}"
                reason = _printable(letter.reason)
                sys.stdout.write(f"{letter.id:>9}  {moment}  {place}  {_short(reason)}\n")
    if not arguments.json:
        each = ", ".join(f"{count} of {topic or '?'}" for topic, count in sorted(topics.items()))
        sys.stdout.write(f"{topics.total()} dead letters{': ' if each else ''}{each}\n")
    return 0


async def _show(config: IngestConfig, arguments: argparse.Namespace) -> int:
    async for letters in read_letters(config.kafka, config.dead_letter_topic):
        for letter in letters:
            if letter.id != arguments.id:
                continue
            content = letter.summary() | {"key": _text(letter.key), "value": _text(letter.value)}
            if arguments.raw:
                sys.stdout.buffer.write(letter.value or b"")
            elif arguments.json:
                _print_json(content | {"value_base64": _base64(letter.value)})
            else:
                for name, value in content.items():
                    sys.stdout.write(f"{name:<15}{'-' if value is None else value}\n")
            return 0
    sys.stderr.write(
        f"error: no dead letter {arguments.id} (never there, or older than the topic's retention);"
        " `list` shows what there is\n"
    )
    return 1


async def _chosen(
    config: IngestConfig, arguments: argparse.Namespace
) -> AsyncGenerator[list[Letter], None]:
    """Yield the letters that the command line asks for."""
    reason = (arguments.reason or "").casefold()
    reading = read_letters(config.kafka, config.dead_letter_topic)
    async with contextlib.aclosing(reading) as batches:
        async for letters in batches:
            yield [
                letter
                for letter in letters
                if (arguments.topic is None or letter.topic == arguments.topic)
                and (not arguments.offset or letter.source_offset in arguments.offset)
                and reason in letter.reason.casefold()
            ]


# -- replay -----------------------------------------------------------------------------------


class _DatabaseError(Exception):
    """The database cannot be used."""


@dataclass
class _Outcome:
    """What a replay has done; `letters` counts each message once, however often it came."""

    letters: int = 0
    stored: int = 0
    known: int = 0
    refused: int = 0
    rows: int = 0
    seen: set[tuple[str, int, int]] = field(default_factory=set)


async def _replay(config: IngestConfig, arguments: argparse.Namespace) -> int:
    """Store what can be stored, each message in a transaction of its own."""
    outcome = _Outcome()
    writer = Writer(config.database, "prime-spark-dlq")
    progress = sys.stderr.isatty()
    try:
        async for letters in _chosen(config, arguments):
            for letter in letters:
                if letter.source in outcome.seen:
                    continue
                outcome.seen.add(letter.source)
                outcome.letters += 1
                result = await _replay_one(config, letter, None if arguments.dry_run else writer)
                _count(outcome, letter, result, arguments.json)
            if progress and outcome.letters:
                sys.stderr.write(f"\r{outcome.letters} letters tried")
    finally:
        if progress and outcome.letters:
            sys.stderr.write("\n")
        await writer.discard()
    _print_outcome(outcome, arguments)
    return 1 if outcome.refused else 0


async def _replay_one(
    config: IngestConfig, letter: Letter, writer: Writer | None
) -> tuple[str, int]:
    """Return "stored" and the new rows, "known" and 0, or why it is refused and -1.

    Without a `writer` only what needs no database is checked.
    """
    try:
        rows = _rows_of(config, letter)
        if writer is None:
            return "stored", rows.number
        written = await writer.write([rows])
    except (*DATABASE_ERRORS, ValueError) as error:
        if isinstance(error, asyncpg.UndefinedTableError):
            raise _DatabaseError("no tables, run prime-spark-db migrate") from error
        if is_data_error(error):
            return describe_database_error(error), -1
        raise _DatabaseError(describe_database_error(error)) from error
    new = sum(written.rows.values())
    return ("stored" if new else "known"), new


def _rows_of(config: IngestConfig, letter: Letter) -> Rows:
    """Return the rows of the message; raises ValueError when it still is none."""
    event_type = config.topics.event_types().get(letter.topic)
    if event_type is None:
        raise ValueError(f"of topic {letter.topic!r}, which ingest does not read")
    if letter.truncated_from is not None:
        raise ValueError(f"truncated: {letter.truncated_from} bytes did not fit")
    event = decode(letter.value, event_type)
    now = datetime.now(UTC)
    check_not_future(event, now)
    check_not_ancient(event, now, config.max_age)
    return encode_rows(event)


def _count(outcome: _Outcome, letter: Letter, result: tuple[str, int], as_json: bool) -> None:
    what, rows = result
    if rows < 0:
        outcome.refused += 1
    elif what == "known":
        outcome.known += 1
    else:
        outcome.stored += 1
        outcome.rows += rows
    if as_json:
        status = "refused" if rows < 0 else what
        reason = what if rows < 0 else None
        _print_json(letter.summary() | {"status": status, "reason": reason, "rows": max(rows, 0)})
    elif rows < 0:
        place = f"{letter.topic}/{letter.partition}/{letter.source_offset}"
        sys.stdout.write(f"{letter.id:>9}  {place}  refused: {_short(_printable(what))}\n")


def _print_outcome(outcome: _Outcome, arguments: argparse.Namespace) -> None:
    if arguments.json:
        return
    if arguments.dry_run:
        sys.stdout.write(
            f"{outcome.letters} letters: {outcome.stored} ({outcome.rows} rows) would be offered"
            f" to the database, {outcome.refused} would be refused; nothing was changed\n"
        )
        return
    sys.stdout.write(
        f"{outcome.letters} letters: {outcome.stored} stored ({outcome.rows} rows),"
        f" {outcome.known} stored before, {outcome.refused} refused\n"
    )


# -- printing ---------------------------------------------------------------------------------


def _print_json(content: dict[str, Any]) -> None:
    sys.stdout.write(msgspec.json.encode(content).decode() + "\n")


def _text(data: bytes | None) -> str | None:
    """Return hostile bytes so that a terminal can show them."""
    return None if data is None else _printable(data.decode(errors="backslashreplace"))


def _base64(data: bytes | None) -> str | None:
    return None if data is None else base64.b64encode(data).decode()


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def _short(text: str) -> str:
    return text if len(text) <= _MAX_REASON else text[: _MAX_REASON - 1] + "…"

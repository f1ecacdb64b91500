"""prime-spark-backup: the service, and what an operator asks of its backups."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prime_spark.backup.copies import store_copy
from prime_spark.backup.postgres import Postgres
from prime_spark.backup.restic import Restic
from prime_spark.backup.restore import RestoreError, bases, check_empty, choose, restore_files
from prime_spark.backup.service import FAILURES, serve
from prime_spark.backup.settings import BackupConfig
from prime_spark.config import ConfigError, answer, argument_parser, config_from_arguments, fail

_LINES = "{name:<20} {time:<20} {what}\n"


def moment(text: str) -> datetime:
    """Return the time that a person wrote, in UTC when no offset is given."""
    try:
        value = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no time such as '2026-11-28 14:00'"
        ) from None
    return value if value.tzinfo else value.replace(tzinfo=UTC)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    found = argument_parser(
        "prime-spark-backup",
        "Store this host's backups as they are due (without a command), or do one of these.",
    )
    commands = found.add_subparsers(dest="command", metavar="command")
    listing = commands.add_parser("list", help="say what can be restored")
    listing.add_argument("--json", action="store_true", help="as one line of JSON")
    runs = commands.add_parser("run", help="store one backup now")
    runs.add_argument("name", help="its name in the configuration")
    check = commands.add_parser("check", help="verify the repository and a share of its data")
    check.add_argument("--share", default="5%", help="how much is read (default 5%%)")
    restore = commands.add_parser(
        "restore",
        help="put a database server's files into an empty directory; the server recovers when it "
        "is started there",
    )
    restore.add_argument("name", help="its name in the configuration")
    restore.add_argument("--into", type=Path, required=True, help="the empty directory")
    goal = restore.add_mutually_exclusive_group()
    goal.add_argument("--until", type=moment, help="the last moment to restore, in UTC")
    goal.add_argument(
        "--point",
        action="store_true",
        help="what was counted when the newest base backup was stored; prints the counts",
    )
    files = commands.add_parser("restore-copy", help="put the newest copy into an empty directory")
    files.add_argument("name", help="its name in the configuration")
    files.add_argument("--into", type=Path, required=True, help="the empty directory")
    return found


async def listing(config: BackupConfig, restic: Restic) -> dict[str, Any]:
    """Return what can be restored, by name."""
    found: dict[str, Any] = {}
    for name in config.postgres:
        found[name] = [
            {
                "base": base.record.segment,
                "earliest": base.earliest.isoformat(),
                "latest": base.latest.isoformat(),
                "rows": sum(table.rows for table in base.record.tables.values()),
            }
            for base in await bases(restic, name)
        ]
    for name in config.copies:
        found[name] = [
            {"copy": one.id[:8], "time": one.time.astimezone(UTC).isoformat()}
            for one in await restic.snapshots(name, "copy")
        ]
    return found


async def _act(config: BackupConfig, arguments: argparse.Namespace) -> dict[str, Any]:
    restic = Restic(config)
    name = getattr(arguments, "name", "")
    if name and name not in {*config.postgres, *config.copies}:
        known = ", ".join([*config.postgres, *config.copies])
        raise RestoreError(f"there is no backup {name!r}; there is {known}")
    if arguments.command == "list":
        return await listing(config, restic)
    if arguments.command == "check":
        await restic.check(arguments.share)
        return {"checked": arguments.share}
    if arguments.command == "run":
        await restic.open()
        if name in config.postgres:
            stored = await Postgres(name, config.postgres[name], restic).store_base()
        else:
            directory = Path(config.state_directory)
            stored = await store_copy(name, config.copies[name], restic, directory)
        return {"stored": stored.snapshot_id, "bytes": stored.total_bytes_processed}
    if arguments.command == "restore-copy":
        snapshots = await restic.snapshots(name, "copy")
        if not snapshots:
            raise RestoreError(f"there is no copy of {name}")
        check_empty(arguments.into)
        await restic.restore_all(snapshots[-1], arguments.into)
        return {"restored": snapshots[-1].id, "time": snapshots[-1].time.isoformat()}
    if name not in config.postgres:
        raise RestoreError(f"{name} is no database: use restore-copy")
    base = choose(await bases(restic, name), arguments.until)
    point = base.record.point if arguments.point else ""
    await restore_files(restic, base, arguments.into, until=arguments.until, point=point)
    if point:
        return {"base": base.record.segment, "point": point, "tables": base.record.tables}
    until = arguments.until or base.latest
    return {"base": base.record.segment, "until": until.isoformat(), "into": str(arguments.into)}


def main(argv: Sequence[str] | None = None) -> int:
    """Console entry point."""
    arguments = parser().parse_args(argv)
    config = config_from_arguments(arguments, BackupConfig)
    if arguments.command is None:
        return serve(config)
    try:
        found = asyncio.run(_act(config, arguments))
    except ConfigError as error:
        fail(str(error))
    except (*FAILURES, RestoreError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    if arguments.command != "list" or arguments.json:
        return answer(found)
    for name, entries in found.items():
        for entry in entries:
            if "base" in entry:
                rows = f"any second until {entry['latest'][:19]}, {entry['rows']} rows at first"
                sys.stdout.write(_LINES.format(name=name, time=entry["earliest"][:19], what=rows))
            else:
                copy = f"copy {entry['copy']}"
                sys.stdout.write(_LINES.format(name=name, time=entry["time"][:19], what=copy))
        if not entries:
            sys.stdout.write(_LINES.format(name=name, time="-", what="nothing stored yet"))
    return 0


if __name__ == "__main__":
    sys.exit(main())

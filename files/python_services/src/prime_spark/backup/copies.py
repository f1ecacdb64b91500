"""Copies of data as they are at one moment."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

from prime_spark.backup.restic import Restic, Stored
from prime_spark.backup.settings import CopyConfig


class MissingError(Exception):
    """What is to be copied is not there; the message names it."""


async def store_copy(
    name: str, config: CopyConfig, restic: Restic, state_directory: Path
) -> Stored:
    """Store one copy; raise ProgramError, MissingError, OSError or sqlite3.Error."""
    tags = [name, "copy"]
    if config.command:
        return await restic.store_output(name, tags, config.command)
    missing = _missing([*config.paths, *config.sqlite])
    if missing:
        raise MissingError(f"there is no {', '.join(missing)}")
    if config.paths:
        return await restic.store_paths(tags, config.paths)
    # Under a name that stays, so that all snapshots are of the same paths.
    folder = state_directory / "sqlite" / name
    folder.mkdir(parents=True, exist_ok=True)
    targets = [folder / path.strip("/").replace("/", "_") for path in config.sqlite]
    try:
        for path, target in zip(config.sqlite, targets, strict=True):
            await asyncio.to_thread(_copy_sqlite, Path(path), target)
        return await restic.store_paths(tags, [str(target) for target in targets])
    finally:
        for target in targets:
            target.unlink(missing_ok=True)


def _missing(paths: list[str]) -> list[str]:
    return [path for path in paths if not Path(path).exists()]


def _copy_sqlite(path: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    with (
        closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as source,
        closing(sqlite3.connect(target)) as copy,
    ):
        source.backup(copy)

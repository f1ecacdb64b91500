"""The repository of this host, by way of restic."""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from prime_spark.backup.processes import ProgramError, pipe, run
from prime_spark.backup.settings import BackupConfig
from prime_spark.config import read_credential

# Exit statuses of restic, since 0.17.
INCOMPLETE = 3
_NO_REPOSITORY = 10
_REACH_SECONDS = 10.0


class Snapshot(msgspec.Struct, frozen=True):
    """One snapshot as `restic snapshots --json` tells it."""

    id: str
    time: datetime
    hostname: str
    paths: tuple[str, ...]
    tags: tuple[str, ...] = ()

    def tag(self, prefix: str) -> str:
        """Return the rest of the tag that begins so, or an empty string."""
        found = (tag.removeprefix(prefix) for tag in self.tags if tag.startswith(prefix))
        return next(found, "")


class Stored(msgspec.Struct, frozen=True):
    """What restic says when a snapshot is stored."""

    snapshot_id: str
    total_bytes_processed: int
    data_added: int


class Restic:
    """Adds to one repository and reads from it. Every method may raise ProgramError."""

    def __init__(self, config: BackupConfig) -> None:
        self._program = config.restic
        self._host = config.host
        self._making = asyncio.Lock()
        self._lock = Path(config.state_directory) / "repository.lock"
        credentials = Path(os.environ.get("CREDENTIALS_DIRECTORY", ""))
        repository = config.repository
        address = urlsplit(repository.url.removeprefix("rest:"))
        self._server = (address.hostname, address.port)
        self._environment = {
            "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
            "HOME": config.state_directory,
            # One processor, so that a small host has another for its work.
            "GOMAXPROCS": "1",
            "RESTIC_REPOSITORY": repository.url,
            "RESTIC_PASSWORD_FILE": str(credentials / repository.key.credential),
            "RESTIC_REST_USERNAME": repository.username,
            "RESTIC_REST_PASSWORD": read_credential(repository.credential),
            "RESTIC_CACHE_DIR": f"{config.state_directory}/cache",
        }

    async def open(self) -> None:
        """Make the repository when there is none yet.

        One at a time on this host: of two that make it, the key of one and the other's
        configuration stay, and where nothing can be deleted that is the end of the repository.
        """
        async with self._making:
            with self._lock.open("w") as lock:
                await asyncio.to_thread(fcntl.flock, lock, fcntl.LOCK_EX)
                try:
                    await self._run("cat", "config")
                except ProgramError as error:
                    if error.status != _NO_REPOSITORY:
                        raise
                    await self._run("init")

    async def store_output(self, name: str, tags: Sequence[str], command: Sequence[str]) -> Stored:
        """Store what a command prints as the file `name`; nothing when the command fails."""
        options = ["--stdin-from-command", "--stdin-filename", name]
        return await self._store(tags, [*options, "--", *command])

    async def store_bytes(self, name: str, tags: Sequence[str], content: bytes) -> Stored:
        """Store `content` as the file `name`."""
        return await self._store(tags, ["--stdin", "--stdin-filename", name], stdin=content)

    async def store_paths(self, tags: Sequence[str], paths: Sequence[str]) -> Stored:
        """Store files and directories."""
        return await self._store(tags, ["--", *paths])

    async def snapshots(self, *tags: str) -> list[Snapshot]:
        """Return the snapshots that have all of the tags, the oldest first."""
        chosen = ["--tag", ",".join(tags)] if tags else []
        output = await self._run("snapshots", "--json", "--no-lock", *chosen)
        found = msgspec.json.decode(output, type=list[Snapshot])
        return sorted(found, key=lambda snapshot: snapshot.time)

    async def read(self, snapshot: Snapshot) -> bytes:
        """Return the content of a snapshot's only file."""
        return await self._run("dump", "--no-lock", snapshot.id, snapshot.paths[0])

    async def unpack(self, snapshot: Snapshot, target: Path) -> None:
        """Unpack the tar file that a snapshot holds into a directory."""
        source = [self._program, "dump", "--no-lock", snapshot.id, snapshot.paths[0]]
        sink = ["tar", "--extract", "--numeric-owner", "--directory", str(target)]
        await pipe(source, sink, environment=self._environment)

    async def restore(self, snapshot: Snapshot, target: Path) -> None:
        """Restore what lies in the snapshot's only directory into `target`."""
        source = f"{snapshot.id}:{snapshot.paths[0]}"
        await self._run("restore", "--no-lock", source, "--target", str(target))

    async def restore_all(self, snapshot: Snapshot, target: Path) -> None:
        """Restore all of a snapshot below `target`, under the paths that it had."""
        await self._run("restore", "--no-lock", snapshot.id, "--target", str(target))

    async def check(self, share: str) -> None:
        """Verify the repository's structure and a share of its data, such as 5%."""
        await self._run("check", "--no-lock", f"--read-data-subset={share}")

    async def _store(
        self, tags: Sequence[str], arguments: Sequence[str], *, stdin: bytes | None = None
    ) -> Stored:
        chosen = [option for tag in tags for option in ("--tag", tag)]
        output = await self._run(
            "backup", "--json", "--host", self._host, *chosen, *arguments, stdin=stdin
        )
        return msgspec.json.decode(output.splitlines()[-1], type=Stored)

    async def _run(self, *arguments: str, stdin: bytes | None = None) -> bytes:
        # restic itself would try for a quarter of an hour, with longer and longer pauses.
        async with asyncio.timeout(_REACH_SECONDS):
            _, writer = await asyncio.open_connection(*self._server)
            writer.close()
        argv = [self._program, "--quiet", *arguments]
        return await run(argv, environment=self._environment, stdin=stdin)

"""Programs that backups are made with: run to their end, killed with whoever waits for them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence

_ERROR_CHARACTERS = 600


class ProgramError(Exception):
    """A program failed; the message has its name, its status and the end of what it said."""

    def __init__(self, argv: Sequence[str], status: int, said: bytes) -> None:
        text = " ".join(said.decode(errors="replace").split())[-_ERROR_CHARACTERS:]
        super().__init__(f"{argv[0]} ended with {status}: {text}")
        self.status = status


async def run(
    argv: Sequence[str],
    *,
    environment: Mapping[str, str] | None = None,
    stdin: bytes | None = None,
) -> bytes:
    """Return what a program prints; raise ProgramError when it fails."""
    process = await asyncio.create_subprocess_exec(
        *argv,
        env=environment,
        stdin=asyncio.subprocess.DEVNULL if stdin is None else asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        output, error = await process.communicate(stdin)
    finally:
        await end(process)
    if process.returncode:
        raise ProgramError(argv, process.returncode, error or output)
    return output


async def pipe(
    source: Sequence[str], sink: Sequence[str], *, environment: Mapping[str, str] | None = None
) -> None:
    """Run `source | sink`; raise ProgramError when either fails."""
    script = 'set -o pipefail; n=$1; shift; "${@:1:n}" | "${@:n+1}"'
    argv = ["/bin/bash", "-c", script, "pipe", str(len(source)), *source, *sink]
    await run(argv, environment=environment)


async def end(process: asyncio.subprocess.Process) -> None:
    """Kill a process that still runs, and wait until it is gone."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()

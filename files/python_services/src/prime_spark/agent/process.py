"""Programs that do the heavy work, bounded in time and never through a shell."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass

from prime_spark.agent.errors import TaskFailedError

_REASON_CHARS = 300


@dataclass(frozen=True)
class Finished:
    """How a program ended and what it wrote."""

    status: int
    output: bytes
    errors: str


async def run_program(argv: Sequence[str], data: bytes, seconds: float) -> Finished:
    """Run `argv` with `data` on its standard input.

    After `seconds`, or when the caller is cancelled, the program and its children are killed.
    Raises TaskFailedError when it does not start or takes too long.
    """
    name = os.path.basename(argv[0])  # noqa: PTH119 (a program's name, not a path)
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
            env={"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8"},
        )
    except OSError as error:
        raise TaskFailedError(f"cannot start {argv[0]}: {error.strerror}") from error
    try:
        async with asyncio.timeout(seconds):
            output, errors = await process.communicate(data)
    except TimeoutError:
        raise TaskFailedError(f"{name} took longer than {seconds:g} s") from None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    text = " ".join(errors.decode(errors="replace").split())[-_REASON_CHARS:]
    return Finished(process.returncode or 0, output, text)

"""Run a program to its end, with its output as text."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from typing import Any

Finished = subprocess.CompletedProcess[str]
Argv = Sequence[str | os.PathLike[str]]
TIMED_OUT, NOT_FOUND = 124, 127


def finish(argv: Argv, *, stdin: str = "", **options: Any) -> Finished:
    """Run a program; ``options`` are those of `subprocess.run`."""
    return subprocess.run(
        argv, input=stdin, capture_output=True, text=True, errors="replace", check=False, **options
    )


def attempt(argv: Argv, **options: Any) -> Finished:
    """As `finish`; a program that is not there, or that takes too long, ends with that status."""
    try:
        return finish(argv, **options)
    except FileNotFoundError:
        return Finished(argv, NOT_FOUND, "", f"{argv[0]} is not installed")
    except subprocess.TimeoutExpired as late:
        return Finished(argv, TIMED_OUT, "", f"no answer within {late.timeout:g} s")


def said(done: Finished) -> str:
    """What a program that failed has to say about it."""
    return (done.stderr or done.stdout).strip()


def run(
    argv: Argv, error: type[Exception], *, shown: str = "", remedy: str = "", **options: Any
) -> str:
    """Run a program that must not fail; what it prints.

    ``error`` quotes what the program printed, never what it was given on its standard input.
    ``shown`` stands for the command there, ``remedy`` says what helps where it is not installed.
    """
    words = shown or " ".join(map(str, argv))
    try:
        done = finish(argv, **options)
    except FileNotFoundError:
        raise error(f"{argv[0]} is not installed" + (f": {remedy}" if remedy else "")) from None
    except subprocess.TimeoutExpired as late:
        raise error(f"`{words}` did not end within {late.timeout:.0f} s") from None
    if done.returncode != 0:
        raise error(f"`{words}` failed: {said(done)}")
    return done.stdout

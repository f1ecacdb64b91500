"""Commands that make something match by themselves and say what they changed, or would change."""

from __future__ import annotations

import json
import os
import subprocess
from typing import Any


class CommandError(Exception):
    """The command failed or said nothing that can be understood."""


def changes_in(output: str, prefix: str | None) -> list[str]:
    """The changes that the command names; raises CommandError when it names none properly."""
    if prefix is not None:
        return [
            line.removeprefix(prefix).strip()
            for line in output.splitlines()
            if line.startswith(prefix)
        ]
    try:
        answer = json.loads(output)
        changed = answer["changed"]
    except (ValueError, KeyError, TypeError):
        raise CommandError(f"expected one JSON object with `changed`, seen: {output!r}") from None
    if not changed:
        return []
    sentences = [
        str(sentence)
        for key in ("changes", "applied", "pending", "grants")
        for sentence in answer.get(key) or []
    ]
    return sentences or ["changed"]


def execute(params: dict[str, Any], stage: str, check_mode: bool) -> list[str]:
    """Run the command; the changes that it made, or would make.

    ``params`` has argv, check_argv, environment, stdin, changed_prefix and timeout in seconds;
    ``stage`` replaces ``{stage}`` in the first three.
    """
    words = [*params["argv"], *(params["check_argv"] if check_mode else [])]
    argv = [word.replace("{stage}", stage) for word in words]
    environment = {
        key: str(value).replace("{stage}", stage) for key, value in params["environment"].items()
    }
    shown = " ".join(word.replace("{stage}", "") for word in words)
    try:
        done = subprocess.run(
            argv,
            input=params["stdin"] or "",
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, **environment},
            timeout=params["timeout"],
            cwd="/",
        )
    except FileNotFoundError:
        raise CommandError(f"{argv[0]} is not installed: run the role without --check") from None
    except subprocess.TimeoutExpired:
        raise CommandError(f"`{shown}` did not end within {params['timeout']} s") from None
    if done.returncode != 0:
        raise CommandError(f"`{shown}` failed: {(done.stderr or done.stdout).strip()}")
    try:
        return changes_in(done.stdout, params["changed_prefix"])
    except CommandError as error:
        raise CommandError(f"`{shown}`: {error}") from None

"""Commands that make something match by themselves and say what they changed, or would change."""

from __future__ import annotations

import json
import os
from typing import Any

from ansible_collections.prime_spark.fleet.plugins.module_utils.process import run


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
    said = run(
        argv,
        CommandError,
        shown=shown,
        remedy="run the role without --check",
        stdin=params["stdin"] or "",
        env={**os.environ, **environment},
        timeout=params["timeout"],
        cwd="/",
    )
    try:
        return changes_in(said, params["changed_prefix"])
    except CommandError as error:
        raise CommandError(f"`{shown}`: {error}") from None

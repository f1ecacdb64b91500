"""prime-spark-hook: the service, and the commands beside it."""

from __future__ import annotations

import argparse
import os
import sqlite3
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from prime_spark.config import (
    ConfigError,
    argument_parser,
    config_from_arguments,
    fail,
    load_config,
)
from prime_spark.hook import service, terminal
from prime_spark.hook.rules import Rules, RulesError, ValueRefusedError, load_rules
from prime_spark.hook.settings import HookConfig
from prime_spark.hook.signatures import events_of

_EPILOG = """\
a recorded delivery is JSON:
  {"source": "github", "headers": {"X-GitHub-Event": "push"}, "body": {"ref": "refs/heads/main"}}

exit status: 0 yes, 1 the delivery starts nothing or what was asked for cannot be, 2 wrong usage,
rules or configuration
"""


class Recorded(msgspec.Struct, forbid_unknown_fields=True):
    """A delivery as somebody has kept it."""

    source: str
    headers: dict[str, str]
    body: msgspec.Raw


def main(argv: Sequence[str] | None = None) -> int:
    """Console entry point."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0].startswith("-"):
        return _serve(argv)
    arguments = _parser().parse_args(argv)
    try:
        status: int = arguments.run(arguments)
    except sqlite3.OperationalError as error:
        # The service holds the file for milliseconds; a full disk lasts.
        fail(f"the queue cannot be read or written now ({error}): look at the disk, or try again")
    return status


def _serve(argv: Sequence[str]) -> int:
    parser = argument_parser(
        "prime-spark-hook",
        "Start playbook runs from signed web hooks. `prime-spark-hook COMMAND --help` is about "
        "the commands: runs, start, drift, mend, breakers, reset, check-rules, test-rule.",
    )
    arguments = parser.parse_args(argv)
    config = _config(arguments.config)
    rules = _rules(arguments.config.parent / config.rules)
    try:
        service.check_commits(config, rules)
        if not arguments.check_config or "CREDENTIALS_DIRECTORY" in os.environ:
            secrets = service.secrets_of(rules)
            users = service.users_of(config)
    except ConfigError as error:
        fail(str(error))
    config = config_from_arguments(arguments, HookConfig)
    return service.run(config, rules, secrets, users)


def _config(path: Path) -> HookConfig:
    try:
        return load_config(path, HookConfig)
    except ConfigError as error:
        fail(str(error))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="prime-spark-hook",
        description="Start playbook runs from signed web hooks.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    check = commands.add_parser("check-rules", help="validate a file of rules")
    check.add_argument("rules", type=Path)
    check.set_defaults(run=_check_rules)
    test = commands.add_parser("test-rule", help="show what a recorded delivery would start")
    test.add_argument("rules", type=Path)
    test.add_argument("--delivery", type=Path, required=True, metavar="FILE")
    test.set_defaults(run=_test_rule)
    terminal.add_commands(commands)
    one = commands.add_parser("run-one", help="the process of one run; started by the service")
    one.add_argument("directory", type=Path, nargs="?", help="else a line of standard input")
    one.set_defaults(run=_run_one)
    return parser


def _run_one(arguments: argparse.Namespace) -> int:
    # Only this process needs ansible-runner.
    from prime_spark.hook.runner import run_one  # noqa: PLC0415

    return run_one(arguments.directory or _named())


def _named() -> Path:
    """Return the directory that the service names on its connection, which becomes our input."""
    name = sys.stdin.readline().rstrip("\n")
    if not name:
        fail("standard input names no directory of a run")
    # Nothing that the run starts has the connection.
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    return Path(name)


def _rules(path: Path) -> Rules:
    try:
        return load_rules(path)
    except RulesError as error:
        fail(str(error))


def _check_rules(arguments: argparse.Namespace) -> int:
    rules = _rules(arguments.rules)
    sys.stdout.write(f"{arguments.rules}: ok, {len(rules.rules)} rules\n")
    return 0


def _test_rule(arguments: argparse.Namespace) -> int:
    rules = _rules(arguments.rules)
    path: Path = arguments.delivery
    try:
        recorded = msgspec.json.decode(path.read_bytes(), type=Recorded)
    except (OSError, msgspec.MsgspecError) as error:
        fail(f"{path}: {error}")
    source = rules.source(recorded.source)
    if source is None:
        fail(f"{path}: source {recorded.source!r} is none of the rules' sources")
    headers = {name.lower(): value for name, value in recorded.headers.items()}
    try:
        events = events_of(source.kind, bytes(recorded.body))
    except ValueError as error:
        fail(f"{path}: body: {error}")
    starts = False
    for event in events:
        answer: dict[str, object]
        try:
            job = rules.job(source.name, headers, event.body)
        except ValueRefusedError as error:
            answer = {"starts": None, "refused": str(error)}
        else:
            if job is None:
                misses = rules.misses(source.name, headers, event.body)
                answer = {"starts": None, "because": misses}
            else:
                starts = True
                command = ["ansible-playbook", *job.arguments()]
                answer = {"starts": job.rule, "command": command, **msgspec.to_builtins(job)}
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(answer), indent=2).decode() + "\n")
    if not events:
        sys.stdout.write("nothing fires in this notification\n")
    return 0 if starts else 1

"""prime-spark-hook in a terminal: runs, plans, drift and breakers, also while the service is down.

What comes from outside (names, messages, output of hosts) is shown so that a terminal obeys none
of it, and no longer than a line or a screen.
"""

from __future__ import annotations

import argparse
import getpass
import os
import re
import sys
import syslog
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import structlog

from prime_spark.config import ConfigError, fail, load_config
from prime_spark.hook import service
from prime_spark.hook.directory import RunDirectory
from prime_spark.hook.people import People, Person
from prime_spark.hook.queue import DecisionError, Queue, Run
from prime_spark.hook.rules import Rules, RulesError, load_rules
from prime_spark.hook.settings import HookConfig
from prime_spark.runtime.tables import age, table

CONFIG = Path("/etc/prime-spark/hook/config.json")
_CELL_CHARS = 60
_LINE_CHARS = 2000
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_FOLLOW_SECONDS = 0.5
_COMMANDS = argparse._SubParsersAction  # noqa: SLF001 (argparse names the type nowhere else)


def harmless(text: object, most: int = _LINE_CHARS) -> str:
    """Return a text as one line that a terminal shows and does not obey, `most` long."""
    line = "".join(
        each if each.isprintable() else each.encode("unicode_escape", "replace").decode()
        for each in str(text)[: most + 1]
    )
    return line if len(line) <= most else line[: most - 1] + "…"


class _Journal:
    """Takes log lines to the journal."""

    def __init__(self, *_: object) -> None:
        syslog.openlog("prime-spark-hook")

    def info(self, line: str) -> None:
        """Take a line."""
        syslog.syslog(syslog.LOG_INFO, line)


class Terminal:
    """What the commands work with: the queue's file, the rules, and who acts."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.json: bool = arguments.json
        self._folder: Path = arguments.config.parent
        try:
            self.config = load_config(arguments.config, HookConfig)
        except ConfigError as error:
            fail(str(error))
        self.queue: Queue = service.open_queue(self.config)
        # Root may be anybody: whoever has become it by sudo, where that is known.
        name = os.environ.get("SUDO_USER") or getpass.getuser()
        self.who = Person(name, "terminal")

    def rules(self) -> Rules:
        """Return the rules."""
        try:
            return load_rules(self._folder / self.config.rules)
        except RulesError as error:
            fail(str(error))

    def people(self) -> People:
        """Return what carries out acts."""
        return People(self.queue, self.rules())

    def directory(self, run: int) -> RunDirectory:
        """Return the directory of a run."""
        return RunDirectory(Path(self.config.state) / "runs" / str(run))

    def run(self, number: int) -> Run:
        """Return a run."""
        found = self.queue.get(number)
        if found is None:
            raise DecisionError(f"run {number} is not known")
        return found

    def show(self, data: Any, text: str) -> None:
        """Print for programs or for people."""
        if self.json:
            text = msgspec.json.format(msgspec.json.encode(data), indent=2).decode()
        sys.stdout.write(text + "\n")


def add_commands(commands: _COMMANDS[argparse.ArgumentParser]) -> None:
    """Add the commands to those of prime-spark-hook."""
    runs = commands.add_parser("runs", help="list, show, follow, approve, reject, cancel, again")
    acts = runs.add_subparsers(required=True, metavar="WHAT")
    listed = _add(acts, "list", _list, "the newest runs")
    listed.add_argument("--number", type=int, default=20)
    for name, work, about in (
        ("show", _show, "a run, its plan and its hosts"),
        ("follow", _follow, "what a run prints, until it ends"),
        ("cancel", _cancel, "end a run that waits or has begun"),
    ):
        _add(acts, name, work, about).add_argument("id", type=int)
    for name, work, about in (
        ("approve", _approve, "let a plan be applied, as `show` has it"),
        ("reject", _reject, "let a plan not be applied"),
    ):
        decide = _add(acts, name, work, about)
        decide.add_argument("id", type=int)
        decide.add_argument("--hash", required=name == "approve", help="of the plan")
    again = _add(acts, "again", _again, "run once more what has ended")
    again.add_argument("id", type=int)
    again.add_argument("--failed", action="store_true", help="on the hosts alone that failed")
    start = _add(commands, "start", _start, "start now what a schedule starts")
    start.add_argument("schedule")
    drift = _add(commands, "drift", _drift, "what the newest reports of drift say")
    drift.add_argument("--start", action="store_true", help="look now: queue a new report")
    mend = _add(commands, "mend", _mend, "plan to mend a role of a host")
    mend.add_argument("host")
    mend.add_argument("role")
    _add(commands, "breakers", _breakers, "rules that do not start on a host any more")
    reset = _add(commands, "reset", _reset, "let a rule start on a host again")
    reset.add_argument("rule")
    reset.add_argument("host")


def _add(
    commands: _COMMANDS[argparse.ArgumentParser],
    name: str,
    work: Callable[[Terminal, argparse.Namespace], None],
    about: str,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=about)
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("--json", action="store_true", help="print JSON")

    def run(arguments: argparse.Namespace) -> int:
        # What a person does here is in the journal, as what is done on the page.
        structlog.configure(
            processors=[structlog.processors.add_log_level, structlog.processors.JSONRenderer()],
            logger_factory=_Journal,
        )
        try:
            work(Terminal(arguments), arguments)
        except DecisionError as error:
            sys.stderr.write(harmless(error) + "\n")
            return 1
        return 0

    parser.set_defaults(run=run)
    return parser


def _list(terminal: Terminal, arguments: argparse.Namespace) -> None:
    runs = terminal.queue.newest(arguments.number)
    now = time.time()
    rows = [
        [
            run.id,
            run.state,
            harmless(run.rule, _CELL_CHARS),
            harmless(run.triggered_by, _CELL_CHARS),
            age(now - run.accepted),
            harmless(",".join(run.hosts), _CELL_CHARS),
            harmless(run.reason, _CELL_CHARS),
        ]
        for run in runs
    ]
    heads = ["ID", "STATE", "RULE", "TRIGGERED BY", "ACCEPTED", "HOSTS", "REASON"]
    terminal.show(runs, table(heads, rows))


def _show(terminal: Terminal, arguments: argparse.Namespace) -> None:
    run = terminal.run(arguments.id)
    plan = terminal.directory(run.id).plan()
    deliveries = terminal.queue.deliveries(run.id)
    data = {**msgspec.to_builtins(run), "deliveries": deliveries, "plan": plan}
    lines = [
        f"{name:<14} {harmless(value)}"
        for name in Run.__struct_fields__
        if name not in {"job", "results"} and (value := getattr(run, name)) not in (None, "", [])
    ]
    if run.job is not None:
        command = " ".join(["ansible-playbook", *run.job.arguments()])
        lines += [f"{'command':<14} {harmless(command)}"]
        lines += [f"{'commit':<14} {run.job.commit}"] if run.job.commit else []
    lines += [f"{'host':<14} {harmless(host)}: {how}" for host, how in run.results.items()]
    for change in plan.changes if plan else ():
        item = f" ({change.item})" if change.item else ""
        lines += ["", harmless(f"{change.host}: {change.task}{item}")]
        lines += [f"  {harmless(line)}" for line in change.diff.splitlines()]
        lines += ["  ... cut off"] if change.cut else []
    for host, number in (plan.hidden if plan else {}).items():
        lines += ["", harmless(f"{host}: {number} tasks with no_log")]
    terminal.show(data, "\n".join(lines))


def _follow(terminal: Terminal, arguments: argparse.Namespace) -> None:
    for line in _printed(terminal, arguments.id):
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
    run = terminal.run(arguments.id)
    terminal.show(run, f"run {run.id}: {run.state} {harmless(run.reason)}".rstrip())


def _printed(terminal: Terminal, number: int) -> Iterator[str]:
    """Yield what a run prints, until it ends or waits for approval."""
    path = terminal.directory(number).events
    offset = 0
    while True:
        run = terminal.run(number)
        try:
            with path.open("rb") as stream:
                stream.seek(offset)
                while (line := stream.readline()).endswith(b"\n"):
                    offset += len(line)
                    text = str(msgspec.json.decode(line).get("stdout") or "")
                    yield from (harmless(_plain(part)) for part in text.splitlines())
        except FileNotFoundError:
            pass
        if run.ended is not None or run.state == "waiting_approval":
            return
        time.sleep(_FOLLOW_SECONDS)


def _plain(line: str) -> str:
    """Return a line without Ansible's own colours."""
    return _COLOUR.sub("", line)


def _approve(terminal: Terminal, arguments: argparse.Namespace) -> None:
    run = terminal.run(arguments.id)
    given = str(arguments.hash)
    full = run.plan_hash or ""
    plan_hash = full if len(given) >= 8 and full.startswith(given) else given
    started = terminal.people().approve(terminal.who, run.id, plan_hash)
    terminal.show({"run": started}, f"run {started} applies the plan of run {run.id}")


def _reject(terminal: Terminal, arguments: argparse.Namespace) -> None:
    terminal.people().reject(terminal.who, arguments.id)


def _cancel(terminal: Terminal, arguments: argparse.Namespace) -> None:
    terminal.people().cancel(terminal.who, arguments.id)


def _again(terminal: Terminal, arguments: argparse.Namespace) -> None:
    people = terminal.people()
    _say(terminal, people.again(terminal.who, arguments.id, failed_only=arguments.failed))


def _start(terminal: Terminal, arguments: argparse.Namespace) -> None:
    _say(terminal, terminal.people().start(terminal.who, arguments.schedule))


def _mend(terminal: Terminal, arguments: argparse.Namespace) -> None:
    _say(terminal, terminal.people().mend(terminal.who, arguments.host, arguments.role))


def _say(terminal: Terminal, run: int) -> None:
    terminal.show({"run": run}, f"run {run}")


def _drift(terminal: Terminal, arguments: argparse.Namespace) -> None:
    people = terminal.people()
    if arguments.start:
        names = [each.name for each in terminal.rules().schedules if each.run.report == "drift"]
        if not names:
            raise DecisionError("the rules have no schedule with report: drift")
        _say(terminal, people.start(terminal.who, names[0]))
        return
    hosts = people.drift.latest()
    now = time.time()
    rows = []
    for host in hosts:
        parts = [
            f"{name}: {role.state}: {'; '.join(role.why)}"
            for name, role in host.roles.items()
            if role.state != "in sync"
        ]
        for part in parts or [""]:
            row = [harmless(host.host, _CELL_CHARS), host.state, age(now - host.at)]
            rows.append([*row, harmless(part, 2 * _CELL_CHARS)])
    terminal.show(hosts, table(["HOST", "STATE", "SEEN", "WHAT DIFFERS"], rows))


def _breakers(terminal: Terminal, _arguments: argparse.Namespace) -> None:
    breakers = terminal.queue.breakers()
    rows = [
        [harmless(each.rule), harmless(each.host), each.failures, age(time.time() - each.at)]
        for each in breakers
    ]
    terminal.show(breakers, table(["RULE", "HOST", "FAILURES", "LAST"], rows))


def _reset(terminal: Terminal, arguments: argparse.Namespace) -> None:
    terminal.people().reset(terminal.who, arguments.rule, arguments.host)

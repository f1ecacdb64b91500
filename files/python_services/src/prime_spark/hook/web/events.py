"""What a run has done: its log, and its results by host and by task, out of its events."""

from __future__ import annotations

import asyncio
import re
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Literal

import msgspec
from markupsafe import Markup

from prime_spark.hook.plan import Change, Planner
from prime_spark.hook.web.text import line_html, marked, plain, short

Outcome = Literal["ok", "changed", "skipped", "ignored", "failed", "unreachable"]

# What the page shows; the whole log is there as text.
_LINES = 1000
_EVENT_LINES = 200
_TASKS = 1000
_MESSAGE_CHARS = 2000
_FOUND = 500
# A piece of the live log, and how long it is waited for.
_PIECE_BYTES = 128 * 1024
_LOOK_SECONDS = 0.5
_KEEP_ALIVE_LOOKS = 30
_CACHED = 8
# With which Ansible fills the line of a heading.
_STARS = re.compile(r" \*{3,}$")

_OUTCOMES: dict[str, Outcome] = {
    "runner_on_ok": "ok",
    "runner_on_failed": "failed",
    "runner_on_unreachable": "unreachable",
    "runner_on_skipped": "skipped",
}


class Event(msgspec.Struct):
    """A line of the events, as far as the page needs it."""

    event: str = ""
    stdout: str = ""
    event_data: dict[str, Any] = {}


class _Said(msgspec.Struct):
    stdout: str = ""


@dataclass
class Task:
    """A task of a play: on which hosts it ended how, and what those said that failed."""

    name: str
    play: str
    path: str
    hosts: dict[Outcome, list[str]] = field(default_factory=dict)
    messages: list[tuple[str, str]] = field(default_factory=list)

    @property
    def quiet(self) -> bool:
        """Whether nothing but what was to be expected has happened."""
        return not self.hosts.keys() - {"ok", "skipped"}


@dataclass
class Seen:
    """What there is of a run so far; `offset` is how far the events were read."""

    lines: list[Markup]
    left_out: int
    offset: int
    hosts: dict[str, dict[Outcome, int]]
    tasks: list[Task]
    changes: list[Change]


class Events:
    """Reads the events of runs, and keeps what it has read of the last few."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: dict[Path, tuple[int, Seen]] = {}

    def seen(self, path: Path) -> Seen:
        """Return what there is of a run with these events."""
        size = _size(path)
        with self._lock:
            kept = self._kept.get(path)
        if kept is not None and kept[0] == size:
            return kept[1]
        seen = _read(path)
        with self._lock:
            self._kept.pop(path, None)
            self._kept[path] = (size, seen)
            while len(self._kept) > _CACHED:
                self._kept.pop(next(iter(self._kept)))
        return seen


def text_of(path: Path) -> Iterator[str]:
    """Yield the whole log, without what only a terminal understands."""
    for said in _said(path):
        yield from (f"{plain(line)}\n" for line in _split(said))


def found_in(path: Path, wanted: str) -> tuple[list[Markup], bool]:
    """Return the lines of the log that contain a text, and whether there are more."""
    found: list[Markup] = []
    folded = wanted.casefold()
    for said in _said(path):
        for line in _split(said):
            if folded in plain(line).casefold():
                if len(found) == _FOUND:
                    return found, True
                found.append(marked(line, wanted))
    return found, False


async def follow(
    path: Path, offset: int, state: Callable[[], str | None], stop: asyncio.Event
) -> AsyncGenerator[str]:
    """Yield server-sent events: the log from an offset on, and the state when that is final.

    `state` returns the state of a run that has ended, and blocks. The id of an event is the offset
    after it, so a browser that comes back continues where it was.
    """
    if not await asyncio.to_thread(_at_a_line, path, offset):
        offset = 0
    quiet = 0
    while not stop.is_set():
        # Before the events are read: what a run says before it ends is there then.
        final = await asyncio.to_thread(state)
        while piece := await asyncio.to_thread(_piece, path, offset):
            lines, offset = piece
            data = msgspec.json.encode(str(Markup("\n").join(lines))).decode()
            yield f"id: {offset}\nevent: log\ndata: {data}\n\n"
            quiet = 0
        if final is not None:
            yield f"event: end\ndata: {final}\n\n"
            return
        quiet += 1
        if quiet % _KEEP_ALIVE_LOOKS == 0:
            yield ": still there\n\n"
        try:
            async with asyncio.timeout(_LOOK_SECONDS):
                await stop.wait()
        except TimeoutError:
            continue


def _piece(path: Path, offset: int) -> tuple[list[Markup], int] | None:
    """Return the lines of the next events that are complete, and the offset after them."""
    try:
        with path.open("rb") as stream:
            stream.seek(offset)
            raw = stream.readlines(_PIECE_BYTES)
    except FileNotFoundError:
        return None
    if raw and not raw[-1].endswith(b"\n"):
        raw.pop()
    if not raw:
        return None
    lines = [line for each in raw for line in _shown(_decode(each, _Said).stdout)]
    return lines, offset + sum(map(len, raw))


def _at_a_line(path: Path, offset: int) -> bool:
    """Return whether an event begins there."""
    if offset <= 0:
        return False
    try:
        with path.open("rb") as stream:
            stream.seek(offset - 1)
            return stream.read(1) == b"\n"
    except OSError:
        # There is no file, or none can be so large.
        return False


def _read(path: Path) -> Seen:
    lines: deque[Markup] = deque(maxlen=_LINES)
    number = 0
    results = _Results()
    offset = 0
    for raw in _lines(path):
        offset += len(raw)
        event = _decode(raw, Event)
        shown = _shown(event.stdout)
        number += len(shown)
        lines.extend(shown)
        results.take(event)
    return Seen(
        lines=list(lines),
        left_out=number - len(lines),
        offset=offset,
        hosts=dict(sorted(results.hosts.items())),
        tasks=list(results.tasks.values()),
        changes=results.planner.plan().changes,
    )


class _Results:
    """Collects how each task ended on each host."""

    def __init__(self) -> None:
        self.tasks: dict[str, Task] = {}
        self.hosts: dict[str, dict[Outcome, int]] = {}
        self.planner = Planner("", "")

    def take(self, event: Event) -> None:
        """Look at an event."""
        data = event.event_data
        if event.event == "phase":
            # What follows is the run itself, not the look before it.
            self.tasks, self.hosts, self.planner = {}, {}, Planner("", "")
        self.planner.take({"event": event.event, "event_data": data})
        outcome = _OUTCOMES.get(event.event)
        if outcome is None:
            return
        result = data.get("res")
        result = result if isinstance(result, dict) else {}
        if outcome == "ok" and result.get("changed") is True:
            outcome = "changed"
        if outcome == "failed" and data.get("ignore_errors"):
            outcome = "ignored"
        host = _text(data.get("host"))
        counts = self.hosts.setdefault(host, {})
        counts[outcome] = counts.get(outcome, 0) + 1
        task = self._task(data)
        if task is None:
            return
        task.hosts.setdefault(outcome, []).append(host)
        if outcome in {"failed", "ignored", "unreachable"}:
            task.messages.append((host, _message(result)))

    def _task(self, data: dict[str, Any]) -> Task | None:
        key = str(data.get("task_uuid"))
        if key not in self.tasks:
            if len(self.tasks) >= _TASKS:
                return None
            name, play, path = (_text(data.get(part)) for part in ("task", "play", "task_path"))
            self.tasks[key] = Task(name=name, play=play, path=path)
        return self.tasks[key]


def _message(result: dict[str, Any]) -> str:
    parts = [result.get(key) for key in ("msg", "stderr", "censored")]
    said = [part if isinstance(part, str) else repr(part) for part in parts if part]
    return plain(short("\n".join(dict.fromkeys(said)), _MESSAGE_CHARS))


def _text(value: object) -> str:
    return plain(short(str(value or ""), 300))


def _shown(said: str) -> list[Markup]:
    lines = islice(_split(said), _EVENT_LINES)
    shown = [line_html(_STARS.sub("", line)) for line in lines]
    more = said.count("\n") + 1 - _EVENT_LINES
    if more > 0:
        shown.append(line_html(f"… {more} more lines"))
    return shown


def _split(said: str) -> Iterator[str]:
    """Yield the lines one by one: a list of short lines is many times as large as their text."""
    at = 0
    while (end := said.find("\n", at)) >= 0:
        yield said[at:end].removesuffix("\r")
        at = end + 1
    if said:
        yield said[at:]


def _said(path: Path) -> Iterator[str]:
    return (_decode(raw, _Said).stdout for raw in _lines(path))


def _lines(path: Path) -> Iterator[bytes]:
    """Yield the lines that are complete."""
    try:
        stream: BinaryIO = path.open("rb")
    except FileNotFoundError:
        return
    with stream:
        for raw in stream:
            if raw.endswith(b"\n"):
                yield raw


def _decode(raw: bytes, kind: type[Any]) -> Any:
    try:
        return msgspec.json.decode(raw, type=kind)
    except (msgspec.MsgspecError, RecursionError):
        return kind()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0

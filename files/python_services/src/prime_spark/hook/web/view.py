"""Templates, and how times, states and commands look in them."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from prime_spark.hook.web.text import diff_html, plain, short

_HERE = Path(__file__).parent
_TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}

# The colour of a state; its words say the same.
TONES: Mapping[str, str] = {
    "succeeded": "good",
    "in sync": "good",
    "ok": "good",
    "changed": "info",
    "approved": "good",
    "starting": "info",
    "running": "info",
    "waiting_approval": "warn",
    "plan_changed": "warn",
    "drifted": "warn",
    "outdated": "warn",
    "failed": "bad",
    "lost": "bad",
    "timed_out": "bad",
    "refused": "bad",
    "unreachable": "dark",
    "ignored": "idle",
    "critical": "bad",
    "warning": "warn",
}
_WORDS = {"waiting_approval": "waits for approval", "unknown": "not looked at"}


def environment() -> jinja2.Environment:
    """Return the templates; whatever they show is escaped."""
    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {
        "ago": ago,
        "diff": diff_html,
        "duration": duration,
        "left": left,
        "moment": moment,
        "name": name,
        "tone": lambda state: TONES.get(state, "idle"),
        "words": words,
    }
    found.globals["static"] = {
        path.name: f"/static/{path.name}?v={hashlib.sha256(path.read_bytes()).hexdigest()[:12]}"
        for path in (_HERE / "static").iterdir()
    }
    return found


def static_files() -> dict[str, tuple[bytes, str]]:
    """Return the files beside the templates, and their types."""
    return {
        path.name: (path.read_bytes(), _TYPES[path.suffix]) for path in (_HERE / "static").iterdir()
    }


def words(state: str) -> str:
    """Return a state in words."""
    return _WORDS.get(state, state.replace("_", " "))


def name(value: object, most: int = 200) -> str:
    """Return a name that somebody else has chosen, on one line and not too long."""
    return plain(short(" ".join(str(value)[: 10 * most].split()), most))


def duration(seconds: float | None) -> str:
    """Return a time span in at most two units."""
    if seconds is None:
        return ""
    whole = max(round(seconds), 0)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    for size, unit, smaller, small in ((86400, "d", 3600, "h"), (3600, "h", 60, "min")):
        if whole >= size:
            rest = whole % size // smaller
            return f"{whole // size} {unit}" + (f" {rest} {small}" if rest else "")
    return f"{whole // 60} min" + (f" {whole % 60} s" if whole % 60 else "")


def ago(at: float | None) -> Markup:
    """Return how long ago something was, with the moment itself behind it."""
    if at is None:
        return Markup("")
    span = max(time.time() - at, 0)
    text = "just now" if span < 10 else f"{duration(span).partition(' ')[0]}{_unit(span)} ago"
    return _time(at, text)


def left(at: float) -> Markup:
    """Return how long it is until something."""
    span = max(at - time.time(), 0)
    return _time(at, duration(span) if span else "now")


def moment(at: float | None) -> Markup:
    """Return a moment."""
    return Markup("") if at is None else _time(at, _utc(at).strftime("%d %b %Y, %H:%M:%S UTC"))


def _unit(span: float) -> str:
    return " " + duration(span).split(" ")[1]


def _time(at: float, text: str) -> Markup:
    when = _utc(at)
    return Markup('<time datetime="{}" title="{}">{}</time>').format(
        when.isoformat(timespec="seconds"), when.strftime("%d %b %Y, %H:%M:%S UTC"), text
    )


def _utc(at: float) -> datetime:
    return datetime.fromtimestamp(at, UTC)


def context(**values: Any) -> dict[str, Any]:
    """Return values for a template, with the present moment."""
    return {"now": time.time(), **values}

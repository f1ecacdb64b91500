"""Text that others wrote (hosts, playbooks, commits) as HTML that does nothing but show it."""

from __future__ import annotations

import re

from markupsafe import Markup, escape

# What one line shows, and what one difference.
LINE_CHARS = 2000
_DIFF_LINES = 2000
_KINDS = {"+": "add", "-": "del", "@": "hunk"}

# Colours and weight of a terminal; every other sequence is left out.
_ESCAPE = re.compile(
    r"\x1b\[(?P<sgr>[0-9;]{0,60})m"
    r"|\x1b\[[0-?]*[ -/]*(?:[@-~]|$)"
    r"|\x1b[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\|$)"
    r"|\x1b[ -/]*(?:[0-~]|$)"
    r"|\x9b[0-?]*[ -/]*(?:[@-~]|$)"
)
# Control characters, what changes the direction of the text around it, and what takes no room: two
# names that look the same are the same.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u180b-\u180f\u200b-\u200f\u2028-\u202e"
    "\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff9-\ufffb\U0001bca0-\U0001bca3"
    "\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
_COLOURS = {code: f"c{code % 10}" for code in (*range(30, 38), *range(90, 98))}


def plain(text: str) -> str:
    """Return text without a terminal's sequences, with a mark for what cannot be seen."""
    return _UNSEEN.sub("\ufffd", _ESCAPE.sub("", text))


def short(text: str, most: int = LINE_CHARS) -> str:
    """Return the beginning of a text, and how much is missing."""
    return text if len(text) <= most else f"{text[:most]} … {len(text) - most} more characters"


def line_html(text: str) -> Markup:
    """Return a line of a terminal as HTML: its colours are classes."""
    text = short(text)
    parts: list[Markup] = []
    classes: set[str] = set()
    at = 0
    for found in _ESCAPE.finditer(text):
        parts.append(_span(text[at : found.start()], classes))
        at = found.end()
        if found["sgr"] is not None:
            _apply(found["sgr"], classes)
    parts.append(_span(text[at:], classes))
    return Markup("").join(parts)


def _span(text: str, classes: set[str]) -> Markup:
    safe = escape(_UNSEEN.sub("\ufffd", text))
    if not safe or not classes:
        return safe
    return Markup('<span class="{}">{}</span>').format(" ".join(sorted(classes)), safe)


def _apply(codes: str, classes: set[str]) -> None:
    """Change the classes as a sequence of codes says."""
    for text in codes.split(";"):
        code = int(text or 0)
        if code in {0, 39}:
            classes -= {each for each in classes if code == 0 or each != "b"}
        elif code == 1:
            classes.add("b")
        elif code == 22:
            classes.discard("b")
        elif code in _COLOURS:
            classes -= {each for each in classes if each != "b"}
            classes.add(_COLOURS[code])
        elif code in {38, 48}:
            return  # A colour by number: its parameters are no codes.


def diff_html(text: str) -> Markup:
    """Return a unified difference as HTML: what goes, what comes."""
    shown: list[Markup] = []
    header = False
    lines = text.split("\n", _DIFF_LINES)
    rest = lines[_DIFF_LINES:]
    lines = lines[:_DIFF_LINES]
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        begins = line.startswith("--- ") and following.startswith("+++ ")
        kind = "hunk" if begins or header else _KINDS.get(line[:1], "same")
        header = begins
        shown.append(Markup('<span class="{}">{}\n</span>').format(kind, plain(short(line))))
    for left in rest:
        # Who approves has to know that this is not all.
        more = left.count("\n") + 1
        shown.append(Markup('<span class="hunk">… {} more lines\n</span>').format(more))
    return Markup("").join(shown)


def marked(text: str, wanted: str) -> Markup:
    """Return a line with all places of what was looked for; nobody minds upper or lower case."""
    text = plain(short(text))
    parts = re.split(f"({re.escape(wanted)})", text, flags=re.IGNORECASE)
    return Markup("").join(
        Markup("<mark>{}</mark>").format(part) if number % 2 else escape(part)
        for number, part in enumerate(parts)
    )

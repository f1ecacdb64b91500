"""Prints results: for people, or one JSON document for programs."""

from __future__ import annotations

import json
import sys
from typing import Any


class Output:
    """Where results go. With `as_json` exactly one JSON document goes to stdout."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json

    def show(self, data: Any, text: str) -> None:
        """Print `data` for programs or `text` for people."""
        line = json.dumps(data, indent=2, ensure_ascii=False) if self.as_json else text
        sys.stdout.write(line + "\n")

    def piece(self, text: str) -> None:
        """Print a piece of a text, at once."""
        sys.stdout.write(text)
        sys.stdout.flush()

    def note(self, text: str) -> None:
        """Tell a person something that is not the result."""
        if not self.as_json:
            sys.stderr.write(text + "\n")

"""JSON of what JSON can express: msgspec writes null for NaN and infinities without a word."""

from __future__ import annotations

import math
from typing import Any, Literal

import msgspec


def encode(value: Any, *, order: Literal["deterministic", "sorted"] | None = None) -> bytes:
    """Return `value` as JSON; raises ValueError for NaN and infinities, else as msgspec does."""
    data = msgspec.json.encode(value, order=order)
    # Without a null there is none; `Raw` is JSON already.
    if b"null" in data and not isinstance(value, msgspec.Raw):
        _check(msgspec.to_builtins(value, str_keys=True))
    return data


def _check(value: Any) -> None:
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError("NaN and infinities cannot be expressed")
    elif isinstance(value, dict):
        for item in value.values():
            _check(item)
    elif isinstance(value, list | tuple):
        for item in value:
            _check(item)

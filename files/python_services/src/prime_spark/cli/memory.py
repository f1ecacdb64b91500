"""`prime-spark memory`: values by key."""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer

from prime_spark.cli.errors import CliError
from prime_spark.cli.state import state_of

app = typer.Typer(
    help="Store values by key: 1 Redis, 2 NAS, 3 PostgreSQL in the cloud.", no_args_is_help=True
)

Key = Annotated[str, typer.Argument(help="Letters, digits and _ . : -")]


@app.command("set")
def set_value(
    context: typer.Context,
    key: Key,
    value: Annotated[
        str | None, typer.Argument(help="JSON; anything else is stored as text.")
    ] = None,
    *,
    file: Annotated[
        Path | None, typer.Option("--file", "-f", help="Store this file's bytes; - is stdin.")
    ] = None,
    tier: Annotated[int, typer.Option(min=1, max=3)] = 1,
    ttl: Annotated[int | None, typer.Option(min=1, help="Seconds, for tier 1.")] = None,
) -> None:
    """Store a value under a key."""
    if (value is None) == (file is None):
        raise CliError("usage", "Give a value or --file, one of them.", status=2)
    body: dict[str, Any] = {"key": key, "tier": tier}
    if file is not None:
        body["value_base64"] = base64.b64encode(_read(file)).decode()
    else:
        body["value"] = _parsed(value or "")
    if ttl is not None:
        body["ttl"] = ttl
    state = state_of(context)
    stored = state.client().ask("POST", "/api/memory/set", json=body).json()
    state.output.show(stored, f"Kept {stored['key']} in tier {stored['tier']}.")


@app.command("get")
def get_value(
    context: typer.Context,
    key: Key,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the value to this file.")
    ] = None,
) -> None:
    """Print a value: JSON as it is, bytes as they are."""
    state = state_of(context)
    answer = state.client().ask("GET", f"/api/memory/get/{quote(key, safe='')}")
    tier = int(answer.headers["X-Memory-Tier"])
    is_json = answer.headers["Content-Type"].startswith("application/json")
    if output is not None:
        _write(output, answer.content)
        size = len(answer.content)
        found = {"key": key, "tier": tier, "file": str(output), "bytes": size}
        state.output.show(found, f"Wrote {size} bytes to {output}.")
    elif state.output.as_json:
        field, value = "value", answer.json() if is_json else None
        if not is_json:
            field, value = "value_base64", base64.b64encode(answer.content).decode()
        state.output.show({"key": key, "tier": tier, field: value}, "")
    elif is_json:
        value = answer.json()
        text = value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False)
        state.output.show(None, text)
    elif sys.stdout.isatty():
        raise CliError("binary", "The value is bytes.", "Use --output FILE.", status=2)
    else:
        sys.stdout.buffer.write(answer.content)


@app.command("delete")
def delete_value(context: typer.Context, key: Key) -> None:
    """Delete a key from every tier."""
    state = state_of(context)
    deleted = state.client().ask("DELETE", f"/api/memory/{quote(key, safe='')}").json()
    tiers = ", ".join(map(str, deleted["tiers"]))
    state.output.show(deleted, f"Deleted {key} from tier {tiers}.")


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _read(path: Path) -> bytes:
    try:
        return sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
    except OSError as error:
        raise CliError("file", f"{path}: {error.strerror}", status=2) from error


def _write(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        raise CliError("file", f"{path}: {error.strerror}", status=2) from error

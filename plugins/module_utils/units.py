"""Units of systemd on a host: their state, their last words, and the gate after a start."""

from __future__ import annotations

import functools
import hashlib
import json
import time
import urllib.error
import urllib.request
from typing import Any

from ansible_collections.prime_spark.fleet.plugins.module_utils import process
from ansible_collections.prime_spark.fleet.plugins.module_utils.tree import TreeError

run = functools.partial(process.run, error=TreeError)


def printed(argv: list[str]) -> str:
    """A digest of what a command prints; empty where it fails or is not there."""
    done = process.attempt([str(word) for word in argv])
    return hashlib.sha256(done.stdout.encode()).hexdigest() if done.returncode == 0 else ""


def unit_states(units: list[str]) -> dict[str, dict[str, str]]:
    """The properties of each unit, asked for in one call."""
    if not units:
        return {}
    wanted = "Id,ActiveState,UnitFileState,NeedDaemonReload,LoadState"
    done = process.attempt(["systemctl", "show", "--property", wanted, "--", *units])
    blocks = [
        dict(line.partition("=")[::2] for line in block.splitlines())
        for block in done.stdout.strip().split("\n\n")
    ]
    # In the order asked; a template's instance keeps its name, an alias would not.
    return dict(zip(units, blocks, strict=False))


def journal(unit: str) -> str:
    argv = ["journalctl", "--unit", unit, "--lines", "15", "--no-pager", "--output", "cat"]
    return process.attempt(argv).stdout.strip()


def failing(body: str) -> set[str]:
    """The components for lack of which a service cannot work; none if it does not say so."""
    try:
        components = json.loads(body)["components"].items()
        return {name for name, state in components if state["essential"] and not state["ok"]}
    except (ValueError, KeyError, TypeError, AttributeError):
        return set()


def wait_healthy(health: dict[str, Any], units: list[str]) -> None:
    """Poll the URL until it answers 200; raise with what was seen last.

    A service that only lacks what ``health["absent"]`` names is as healthy as it can be.
    """
    absent = set(health.get("absent") or [])
    deadline = time.monotonic() + health["timeout"]
    seen = "nothing was tried"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while True:
        try:
            with opener.open(health["url"], timeout=5) as answer:
                if answer.status == 200:
                    return
                seen = f"status {answer.status}"
        except urllib.error.HTTPError as error:
            body = error.read(10_000).decode(errors="replace").strip()
            lacking = failing(body)
            if lacking and lacking <= absent:
                return
            seen = f"status {error.code}: {body[:2000]}"
        except OSError as error:
            seen = str(error)
        if time.monotonic() >= deadline:
            logs = "\n".join(f"last lines of {unit}:\n{journal(unit)}" for unit in units)
            raise TreeError(
                f"expected {health['url']} to answer 200 within {health['timeout']} s, "
                f"seen last: {seen}\n{logs}"
            )
        time.sleep(0.25)

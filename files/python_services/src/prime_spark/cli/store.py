"""Where the command keeps its tokens: one private file per user of the machine."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prime_spark.cli.errors import CliError
from prime_spark.runtime import atomic

URL_VARIABLE = "PRIME_SPARK_URL"
# Written by the role cli: {"url": "http://…"}.
SYSTEM_CONFIG = Path("/etc/prime-spark/cli/config.json")


def directory() -> Path:
    """Return the directory of the tokens."""
    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(home) / "prime-spark"


class Store:
    """The tokens of the last login, in a file that nobody else may read."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder or directory()
        self._path = self._folder / "tokens.json"

    @property
    def path(self) -> Path:
        """Where the tokens are."""
        return self._path

    def load(self) -> dict[str, Any] | None:
        """Return what `save` was given last, or None."""
        try:
            mode = self._path.stat().st_mode
            content = self._path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except OSError as error:
            raise CliError("tokens", f"{self._path}: {error.strerror}") from error
        if mode & 0o077:
            raise CliError(
                "tokens",
                f"{self._path} can be read by others (mode {mode & 0o777:04o}).",
                f"Run `chmod 600 {self._path}`, or `prime-spark login` if others may have read it.",
            )
        try:
            found = json.loads(content)
        except ValueError:
            return None
        return found if isinstance(found, dict) else None

    def save(self, tokens: dict[str, Any]) -> None:
        """Replace the tokens, in one step; the file is private from its first moment on."""
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            atomic.replace(self._path, json.dumps(tokens).encode(), 0o600)
        except OSError as error:
            raise CliError("tokens", f"{self._folder}: {error.strerror}") from error

    def clear(self) -> None:
        """Forget the tokens."""
        self._path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the tokens: two commands must not renew them at once."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (self._folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def configured_url() -> str | None:
    """Return the API's address from the environment or the machine's configuration."""
    if url := os.environ.get(URL_VARIABLE):
        return url
    with contextlib.suppress(OSError, ValueError, AttributeError):
        url = json.loads(SYSTEM_CONFIG.read_text(encoding="utf-8")).get("url")
        return str(url) if url else None
    return None

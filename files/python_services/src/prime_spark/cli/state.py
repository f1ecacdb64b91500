"""What every command is given: the address, the time to wait, and where results go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import typer

from prime_spark.cli.client import Client
from prime_spark.cli.output import Output


@dataclass(frozen=True)
class State:
    """The options before the command's name."""

    url: str | None
    timeout: float
    output: Output

    def client(self) -> Client:
        """Return a client of the API that was chosen; raises CliError."""
        return Client(self.url, self.timeout)


def state_of(context: typer.Context) -> State:
    """Return what the options said."""
    return cast("State", context.obj)

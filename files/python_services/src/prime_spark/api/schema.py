"""What the models of requests and answers have in common."""

from __future__ import annotations

from pydantic import BaseModel, BeforeValidator, ConfigDict


def _whole(value: object) -> object:
    """JSON has one kind of number: 3.0 is a whole one."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


# After a field's constraints: a validator before them would hide them from the document.
AS_WHOLE = BeforeValidator(_whole)


class Input(BaseModel):
    """A request's body: nothing is converted, nothing is ignored."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Output(BaseModel):
    """An answer's body."""

    model_config = ConfigDict(frozen=True)

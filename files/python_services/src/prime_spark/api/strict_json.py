"""Reads bodies as JSON and not as what Python's parser takes for it."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
from fastapi import Request, Response
from fastapi.routing import APIRoute


class StrictRequest(Request):
    """Refuses NaN, Infinity and half surrogate pairs, which could not be stored or sent again."""

    async def json(self) -> Any:
        """Return the decoded body; raises json.JSONDecodeError, also for a body too deep."""
        body = await self.body()
        try:
            return msgspec.json.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise json.JSONDecodeError(str(error).partition(" (byte")[0], "", 0) from None


class StrictJsonRoute(APIRoute):
    """A route whose body is read by `StrictRequest`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Wrap FastAPI's handler."""
        handler = super().get_route_handler()
        if self.body_field is None:
            return handler  # nothing to read

        async def strict(request: Request) -> Response:
            return await handler(StrictRequest(request.scope, request.receive))

        return strict

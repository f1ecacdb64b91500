"""The one shape of every error, and how exceptions become it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from prime_spark.api.request_context import GoneError, request_context

_log = structlog.get_logger(__name__)

_MAX_FIELDS = 20
_MAX_FIELD_CHARS = 200
_CLIENT_GONE = 499  # nginx's; only metrics and events see it


class FieldProblem(BaseModel):
    """One field of the request that cannot be used."""

    field: str = Field(description="Where, such as `body.ttl` or `path.key`")
    message: str


class Problem(BaseModel):
    """An error. `code` is for programs and stays the same, `detail` is for people."""

    code: str
    detail: str
    request_id: str = Field(description="Also in X-Request-ID, the log and the event of the call")
    fields: list[FieldProblem] = Field(default=[], description="What is wrong with the input")
    reasons: dict[str, str] = Field(
        default={}, description="What does not answer, and why, such as the memory's tier"
    )


class ApiError(Exception):
    """Answer the request with an error."""

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        fields: Mapping[str, str] | None = None,
        reasons: Mapping[str, str] | None = None,
        retry_after: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.fields = dict(fields or {})
        self.reasons = dict(reasons or {})
        self.headers = dict(headers or {})
        if retry_after is not None:
            self.headers["Retry-After"] = str(max(1, math.ceil(retry_after)))


def not_found(detail: str) -> ApiError:
    """Return a 404."""
    return ApiError(404, "not_found", detail)


def invalid(field: str, message: str) -> ApiError:
    """Return a 422 about one field."""
    return ApiError(422, "invalid", f"{field}: {message}", fields={field: message})


def unavailable(what: str, reason: str, retry_after: float = 5) -> ApiError:
    """Return a 503 that names what does not answer."""
    detail = f"{what} is unavailable: {reason}"
    code = "unavailable"
    return ApiError(503, code, detail, reasons={what: reason}, retry_after=retry_after)


def no_room(detail: str) -> ApiError:
    """Return a 507; `detail` says which limit is reached and what helps."""
    return ApiError(507, "no_room", detail)


# Status to code, what it means here, and an example of `detail`.
_KINDS: dict[int, tuple[str, str, str]] = {
    400: ("bad_request", "The body cannot be read", "There was an error parsing the body"),
    401: ("not_authenticated", "No valid access token", "the access token is expired"),
    403: ("forbidden", "The user's role does not allow it", "needs the role operator"),
    404: ("not_found", "There is no such thing", "there is nothing under the key greeting"),
    409: ("conflict", "Something else has this id", "there is another task with the id t1"),
    413: ("too_large", "The request is too large", "the body has more than 131072 bytes"),
    422: ("invalid", "A field cannot be used; `fields` says which", "body.ttl: must be at least 1"),
    429: (
        "too_many_requests",
        "Too many requests; Retry-After says when the next one may come",
        "more than 30 requests per minute",
    ),
    500: ("internal", "A defect; the log has more under the request id", "internal error"),
    503: (
        "unavailable",
        "Something this needs does not answer; `reasons` says what",
        "memory tier 1 (redis) is unavailable: connection refused",
    ),
    507: (
        "no_room",
        "There is no room for it; `detail` says which limit is reached and what helps",
        "all values together in tier 2 (nas) take 9998 of 9999 bytes, and this one needs 1030",
    ),
}


def problems(*statuses: int, **examples: str) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI responses for error `statuses`; 500 is always among them."""
    described: dict[int | str, dict[str, Any]] = {}
    for status in sorted({*statuses, 500}):
        code, description, detail = _KINDS[status]
        example: dict[str, Any] = {
            "code": code,
            "detail": examples.get(f"e{status}", detail),
            "request_id": "01a2b3c4-d5e6-7f80-9a1b-2c3d4e5f6071",
            "fields": [],
            "reasons": {},
        }
        if status == 422:
            example["fields"] = [{"field": "body.ttl", "message": "must be at least 1"}]
        described[status] = {
            "model": Problem,
            "description": description,
            "content": {"application/json": {"example": example}},
        }
        if status in {429, 503}:
            described[status]["headers"] = {
                "Retry-After": {
                    "description": "Seconds until it is worth trying again",
                    "schema": {"type": "integer", "minimum": 1},
                }
            }
        if status == 401:
            described[status]["headers"] = {
                "WWW-Authenticate": {
                    "description": "How to authenticate",
                    "schema": {"type": "string"},
                }
            }
    return described


# What every route that asks for a token may answer.
GUARDED = (401, 403, 413, 429)


def answer(request: Request, error: ApiError) -> Response:
    """Return the response for `error`."""
    body = {
        "code": error.code,
        "detail": error.detail,
        "request_id": str(request_context(request).id),
        "fields": [{"field": name, "message": text} for name, text in error.fields.items()],
        "reasons": error.reasons,
    }
    # ASCII, so that whatever a client sent and we repeat (half a surrogate pair) can be encoded.
    content = json.dumps(body, ensure_ascii=True).encode("ascii")
    return Response(content, error.status, error.headers, media_type="application/json")


def install(app: FastAPI) -> None:
    """Make every exception of `app` a `Problem`."""

    @app.exception_handler(ApiError)
    async def own(request: Request, error: ApiError) -> Response:
        return answer(request, error)

    @app.exception_handler(GoneError)
    async def gone(_request: Request, _error: GoneError) -> Response:
        return Response(status_code=_CLIENT_GONE)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        code = _KINDS[error.status_code][0] if error.status_code in _KINDS else None
        phrase = HTTPStatus(error.status_code).phrase.lower().replace(" ", "_")
        detail = str(error.detail)
        if error.status_code == 404 and detail == "Not Found":
            detail = "there is no such route"
        return answer(
            request, ApiError(error.status_code, code or phrase, detail, headers=error.headers)
        )

    @app.exception_handler(RequestValidationError)
    async def validation(request: Request, error: RequestValidationError) -> Response:
        fields = {_place(item["loc"]): _message(item) for item in error.errors()[:_MAX_FIELDS]}
        detail = "; ".join(f"{field}: {message}" for field, message in fields.items())
        return answer(request, ApiError(422, "invalid", detail, fields=fields))

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> Response:
        context = request_context(request)
        _log.error(
            "request failed", request_id=str(context.id), path=request.url.path, exc_info=error
        )
        return answer(request, ApiError(500, "internal", "internal error"))


def _place(location: tuple[str | int, ...]) -> str:
    return ".".join(map(str, location))[:_MAX_FIELD_CHARS]


# By the last part of a field's place: what a pattern asks for, in words.
_FORMS = {
    "key": (
        "a key is 1 to 128 letters, digits, '_', '.', ':' and '-', "
        "with a letter, a digit or '_' at both ends"
    ),
    "task_id": (
        "an id is 1 to 64 letters, digits, '.', '_' and '-', with a letter or a digit in front"
    ),
    "value_base64": "this is not base64",
}


def _message(item: Mapping[str, Any]) -> str:
    if item["type"] == "json_invalid":
        return f"not valid JSON: {item['ctx']['error']}"[:_MAX_FIELD_CHARS]
    if item["type"] == "string_pattern_mismatch" and item["loc"][-1] in _FORMS:
        return _FORMS[item["loc"][-1]]
    return str(item["msg"])[:_MAX_FIELD_CHARS]

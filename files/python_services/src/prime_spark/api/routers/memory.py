"""The memory: values by key, in three tiers."""

from __future__ import annotations

import base64
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Request, Response
from pydantic import ConfigDict, Field, StringConstraints, model_validator

from prime_spark.api.audit import audit
from prime_spark.api.authorization import SECURED, Writer, may_read, may_write
from prime_spark.api.dependencies import services_of
from prime_spark.api.errors import (
    GUARDED,
    ApiError,
    invalid,
    no_room,
    not_found,
    problems,
    unavailable,
)
from prime_spark.api.schema import AS_WHOLE, Input, Output
from prime_spark.api.strict_json import StrictJsonRoute
from prime_spark.memory.errors import (
    MemoryKeyError,
    MemoryValueError,
    QuotaError,
    TierUnavailableError,
    ValueTooLargeError,
)

router = APIRouter(prefix="/api/memory", tags=["memory"], route_class=StrictJsonRoute)

KEY_PATTERN = r"^[A-Za-z0-9_]([A-Za-z0-9_.:-]{0,126}[A-Za-z0-9_])?$"
NOT_JSON_SUFFIX: dict[str, Any] = {"not": {"pattern": r"\.json$"}}
# What the model's validator asks for, for those who read the document.
_RULES: dict[str, Any] = {
    "oneOf": [{"required": ["value"]}, {"required": ["value_base64"]}],
    "if": {"properties": {"tier": {"enum": [2, 3]}}, "required": ["tier"]},
    "then": {"properties": {"ttl": {"type": "null"}}},
}
Key = Annotated[
    str,
    StringConstraints(pattern=KEY_PATTERN),
    Field(json_schema_extra=NOT_JSON_SUFFIX, examples=["greeting"]),
]
KeyInPath = Annotated[
    str, Path(pattern=KEY_PATTERN, examples=["greeting"], json_schema_extra=NOT_JSON_SUFFIX)
]
Base64 = Annotated[
    str,
    StringConstraints(pattern=r"^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$"),
]
Tier = Literal[1, 2, 3]


class Set(Input):
    """A value to keep: any JSON in `value`, or bytes in `value_base64`."""

    model_config = ConfigDict(json_schema_extra=_RULES)

    key: Key = Field(description="Not ending in `.json`")
    value: Any = Field(default=None, examples=[{"text": "good morning"}])
    value_base64: Base64 = Field(default="", description="Bytes instead of JSON")
    tier: Annotated[Tier, AS_WHOLE] = Field(
        default=1, description="1 Redis, 2 NAS, 3 PostgreSQL in the cloud"
    )
    ttl: Annotated[int, Field(ge=1, le=2_592_000), AS_WHOLE] | None = Field(
        default=None, description="Seconds, for tier 1 only", examples=[3600]
    )

    @model_validator(mode="after")
    def _one_value(self) -> Set:
        if {"value", "value_base64"} <= self.model_fields_set:
            raise ValueError("give `value` or `value_base64`, not both")
        if not {"value", "value_base64"} & self.model_fields_set:
            raise ValueError("`value` is missing (null is a value, but has to be given)")
        return self


class Stored(Output):
    """What was kept and where."""

    key: str
    tier: Tier


class Deleted(Output):
    """The tiers that had the key."""

    key: str
    tiers: list[Tier]


_EXAMPLE = {"key": "greeting", "value": {"text": "good morning"}, "tier": 1, "ttl": 3600}


@router.post(
    "/set",
    summary="Store a value",
    responses=problems(*GUARDED, 400, 422, 503, 507),
    openapi_extra={
        **SECURED,
        "requestBody": {"content": {"application/json": {"example": _EXAMPLE}}},
    },
)
async def set_value(request: Request, body: Set, caller: Writer) -> Stored:
    """Store a value under a key; replaces what is there.

    Tier 1 forgets it after `ttl` seconds; tiers 2 and 3 keep it until it is deleted. In each tier
    there is a limit for what a user's values take, and one for all: 507 says which is reached.
    """
    given = "value" in body.model_fields_set
    value = body.value if given else base64.b64decode(body.value_base64)
    try:
        await services_of(request).memory.set(
            body.key, value, body.tier, body.ttl, owner=caller.name
        )
    except MemoryKeyError as error:
        raise invalid("body.key", str(error)) from None
    except ValueTooLargeError as error:
        raise ApiError(413, "too_large", str(error)) from None
    except MemoryValueError as error:
        field = "body.ttl" if "ttl" in str(error) else "body.value"
        raise invalid(field, str(error)) from None
    except QuotaError as error:
        raise no_room(str(error)) from None
    except TierUnavailableError as error:
        raise _down(error) from None
    audit(request, "memory_set", key=body.key, tier=body.tier)
    return Stored(key=body.key, tier=body.tier)


@router.get(
    "/get/{key}",
    summary="Get a value",
    dependencies=[may_read],
    response_class=Response,
    responses={
        200: {
            "description": "The value itself: JSON, or bytes as they were given",
            "content": {
                "application/json": {"schema": {}, "example": {"text": "good morning"}},
                "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            },
            "headers": {
                "X-Memory-Tier": {
                    "description": "Where it was found",
                    "schema": {"type": "integer", "enum": [1, 2, 3]},
                }
            },
        },
        **problems(*GUARDED, 404, 422, 503),
    },
    openapi_extra=SECURED,
)
async def get_value(
    request: Request,
    key: KeyInPath,
) -> Response:
    """Look for a key in tiers 1, 2 and 3, and return its value.

    503 when nothing was found but a tier does not answer: the value may be there.
    """
    try:
        found = await services_of(request).memory.get(key)
    except MemoryKeyError as error:
        raise invalid("path.key", str(error)) from None
    except TierUnavailableError as error:
        raise _down(error) from None
    if found is None:
        raise not_found(f"there is nothing under the key {key}")
    headers = {"X-Memory-Tier": str(found.tier)}
    if found.is_json:
        return Response(found.data, headers=headers, media_type="application/json")
    headers["Content-Disposition"] = "attachment"
    return Response(found.data, headers=headers, media_type="application/octet-stream")


@router.delete(
    "/{key}",
    summary="Delete a value",
    dependencies=[may_write],
    responses=problems(*GUARDED, 404, 422, 503),
    openapi_extra=SECURED,
)
async def delete_value(
    request: Request,
    key: KeyInPath,
) -> Deleted:
    """Delete a key from every tier."""
    try:
        tiers = await services_of(request).memory.delete(key)
    except MemoryKeyError as error:
        raise invalid("path.key", str(error)) from None
    except TierUnavailableError as error:
        raise _down(error) from None
    if not tiers:
        raise not_found(f"there is nothing under the key {key}")
    audit(request, "memory_delete", key=key)
    return Deleted(key=key, tiers=tiers)  # type: ignore[arg-type]


def _down(error: TierUnavailableError) -> ApiError:
    return unavailable(f"memory tier {error.tier} ({error.name})", error.reason)

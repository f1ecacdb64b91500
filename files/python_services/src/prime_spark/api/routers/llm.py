"""Language models: answers, whole or as they are made, and what models there are."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Annotated, Any, Literal

import msgspec
import structlog
from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import Field, StringConstraints

from prime_spark.api.authorization import SECURED, may_generate, may_read
from prime_spark.api.dependencies import services_of
from prime_spark.api.errors import GUARDED, ApiError, problems
from prime_spark.api.request_context import request_context, unless_gone
from prime_spark.api.schema import AS_WHOLE, Input, Output
from prime_spark.api.strict_json import StrictJsonRoute
from prime_spark.llm.types import (
    MAX_STOPS,
    Chunk,
    GenerateRequest,
    GenerateResult,
    LLMError,
    LLMRejectedError,
    LLMUnavailableError,
)

_log = structlog.get_logger(__name__)

router = APIRouter(prefix="/api/llm", tags=["llm"], route_class=StrictJsonRoute)

_RETRY_SECONDS = 10


class Generate(Input):
    """What to generate. A parameter that is not given is left to the model's server."""

    prompt: Annotated[str, StringConstraints(min_length=1, max_length=1_000_000)]
    system: Annotated[str, StringConstraints(min_length=1, max_length=100_000)] | None = None
    model: Annotated[str, StringConstraints(min_length=1, max_length=128)] | None = Field(
        default=None,
        description="One of `/api/llm/models`; each backend's own default if omitted",
    )
    max_tokens: Annotated[int, Field(ge=1, le=131_072), AS_WHOLE] = 256
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    seed: Annotated[int, Field(ge=0, le=2**31 - 1), AS_WHOLE] | None = None
    stop: Annotated[list[str], Field(max_length=MAX_STOPS)] | None = None
    use_cache: bool = Field(default=True, description="Read and fill the cache of answers")
    stream: bool = Field(default=False, description="Answer with server-sent events")


class Generated(Output):
    """An answer, and where it came from. Tokens are the backend's own count."""

    response: str = Field(examples=["Hello!"])
    model: str = Field(examples=["llama3.2:latest"])
    source: Literal["edge", "cloud", "cache"] = Field(examples=["edge"])
    backend: str = Field(examples=["spark-agent-1"])
    input_tokens: int | None = Field(examples=[9])
    output_tokens: int | None = Field(examples=[3])
    finish_reason: str | None = Field(examples=["stop"])
    latency_ms: float = Field(examples=[312.5])


class Model(Output):
    """A model, and the backends that have it in the order in which they are asked."""

    id: str = Field(examples=["llama3.2:latest"])
    backends: list[str] = Field(examples=[["spark-agent-1"]])
    sources: list[Literal["edge", "cloud", "cache"]] = Field(examples=[["edge"]])


_EVENTS = """event: token
data: {"text":"Hel"}

event: token
data: {"text":"lo!"}

event: done
data: {"response":"Hello!","model":"llama3.2:latest","source":"edge","backend":"spark-agent-1",\
"input_tokens":9,"output_tokens":3,"finish_reason":"stop","latency_ms":312.5}

"""
_EVENT_SCHEMA = {
    "type": "object",
    "required": ["event", "data"],
    "properties": {
        "event": {"enum": ["token", "done", "error"]},
        "data": {"type": "string", "contentMediaType": "application/json"},
    },
}
_EXAMPLE = {"prompt": "Say hello", "max_tokens": 50}


@router.post(
    "/generate",
    summary="Generate text",
    dependencies=[may_generate],
    response_model=Generated,
    responses={
        200: {
            "description": "The answer; with `stream` as events `token`, then `done` (or `error`)",
            "content": {
                "text/event-stream": {"schema": _EVENT_SCHEMA, "example": _EVENTS},
            },
        },
        **problems(
            *GUARDED,
            400,
            404,
            422,
            503,
            e404="no language model takes this request: edge: has no model 'gpt'",
            e503="no language model answers: edge: no route",
        ),
    },
    openapi_extra={
        **SECURED,
        "requestBody": {"content": {"application/json": {"example": _EXAMPLE}}},
    },
)
async def generate(request: Request, body: Generate) -> Any:
    """Generate text on the edge, or in the cloud where the edge does not answer.

    `source` says where the answer came from, `cache` for one kept from the same request before.
    """
    wanted = GenerateRequest(**{name: value for name, value in body if name != "stream"})
    router_ = services_of(request).llm
    try:
        if not body.stream:
            result = await unless_gone(request, router_.generate(wanted))
            # Encoded here: the model describes it, and would take much of what a kept answer costs.
            return Response(msgspec.json.encode(_generated(result)), media_type="application/json")
        chunks = router_.stream(wanted)
        # An error before the first token is still a status.
        first = await unless_gone(request, anext(chunks))
    except LLMRejectedError as error:
        # Of a model that nobody has it is said as of any other thing that is not there.
        status = 422 if wanted.model is None else 404
        raise ApiError(status, "rejected", str(error), reasons=error.reasons) from None
    except LLMUnavailableError as error:
        raise _down(error) from None
    return StreamingResponse(
        _events(chunks, first, str(request_context(request).id)), media_type="text/event-stream"
    )


@router.get(
    "/models",
    summary="List the models",
    dependencies=[may_read],
    responses=problems(*GUARDED, 503, e503="no language model answers: edge: no route"),
    openapi_extra=SECURED,
)
async def models(request: Request) -> list[Model]:
    """List the models of all backends that answer."""
    try:
        found = await services_of(request).llm.models()
    except LLMUnavailableError as error:
        raise _down(error) from None
    return [Model(id=m.id, backends=m.backends, sources=list(m.sources)) for m in found]


async def _events(
    chunks: AsyncGenerator[Chunk, None], first: Chunk, request_id: str
) -> AsyncIterator[bytes]:
    """Yield server-sent events; the generator is closed also when the client goes away."""
    async with aclosing(chunks):
        try:
            chunk = first
            while True:
                if chunk.text:
                    yield _event("token", {"text": chunk.text})
                if chunk.result is not None:
                    yield _event("done", _generated(chunk.result))
                    return
                chunk = await anext(chunks)
        except (LLMError, StopAsyncIteration) as error:
            _log.warning("stream broke off", request_id=request_id, error=str(error))
            detail = str(error) or "the answer broke off"
            problem = {"code": "interrupted", "detail": detail, "request_id": request_id}
            yield _event("error", problem)


def _event(name: str, data: dict[str, Any]) -> bytes:
    return b"event: " + name.encode() + b"\ndata: " + msgspec.json.encode(data) + b"\n\n"


def _generated(result: GenerateResult) -> dict[str, Any]:
    """Return what `Generated` describes."""
    return {
        "response": result.text,
        "model": result.model,
        "source": result.source,
        "backend": result.backend,
        "input_tokens": result.input_tokens,
        "output_tokens": result.output_tokens,
        "finish_reason": result.finish_reason,
        "latency_ms": result.latency_ms,
    }


def _down(error: LLMUnavailableError) -> ApiError:
    return ApiError(
        503, "unavailable", str(error), reasons=error.reasons, retry_after=_RETRY_SECONDS
    )

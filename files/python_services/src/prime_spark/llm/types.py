"""Requests to language models, their answers, and what can go wrong."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

Source = Literal["edge", "cloud", "cache"]
MAX_STOPS = 4


class GenerateRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to generate. None leaves a parameter to the server.

    `model` None asks each backend for its own default. Every field but `use_cache` is part of the
    response cache's key.
    """

    prompt: Annotated[str, msgspec.Meta(min_length=1, max_length=1_000_000)]
    system: Annotated[str, msgspec.Meta(min_length=1, max_length=100_000)] | None = None
    model: Annotated[str, msgspec.Meta(min_length=1, max_length=128)] | None = None
    max_tokens: Annotated[int, msgspec.Meta(ge=1, le=131_072)] = 256
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None
    presence_penalty: Annotated[float, msgspec.Meta(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, msgspec.Meta(ge=-2, le=2)] | None = None
    seed: Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)] | None = None
    stop: Annotated[list[str], msgspec.Meta(max_length=MAX_STOPS)] | None = None
    use_cache: bool = True


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What one backend answered. Tokens are the backend's own count, None when it gave none."""

    text: str
    model: str
    input_tokens: int | None = None
    output_tokens: int | None = None
    finish_reason: str | None = None


class GenerateResult(msgspec.Struct, frozen=True, kw_only=True):
    """An answer and where it came from. Of a cached one `backend` names who first gave it."""

    text: str
    model: str
    source: Source
    backend: str
    input_tokens: int | None
    output_tokens: int | None
    finish_reason: str | None
    latency_ms: float


class Chunk(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of a streamed answer; the last has an empty text and the whole result."""

    text: str
    result: GenerateResult | None = None


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A model and the backends that have it, in the order in which they are asked."""

    id: str
    backends: list[str]
    sources: list[Source]


class BackendHealth(msgspec.Struct, frozen=True, kw_only=True):
    """State of one backend. `circuit` is open for a while after repeated failures."""

    name: str
    source: Source
    ok: bool
    circuit: Literal["closed", "open", "half-open"]
    detail: str
    running: int
    waiting: int


class LLMError(Exception):
    """No answer can be had."""


class _RouteError(LLMError):
    """No backend answered; `reasons` says for each, by name, why."""

    def __init__(self, what: str, reasons: dict[str, str]) -> None:
        self.reasons = reasons
        listed = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        super().__init__(f"{what}: {listed}")


class LLMUnavailableError(_RouteError):
    """No backend could answer now."""

    def __init__(self, reasons: dict[str, str]) -> None:
        super().__init__("no language model answers", reasons)


class LLMRejectedError(_RouteError):
    """Every backend refused the request itself: too long, or a model that none has."""

    def __init__(self, reasons: dict[str, str]) -> None:
        super().__init__("no language model takes this request", reasons)


class LLMInterruptedError(LLMError):
    """A streamed answer broke off after it had begun."""

    def __init__(self, backend: str, reason: str) -> None:
        self.backend = backend
        self.reason = reason
        super().__init__(f"the answer of {backend} broke off: {reason}")

"""Routes requests to the first backend that answers, and records which one did."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from datetime import UTC, datetime

import structlog
from prometheus_client import REGISTRY, CollectorRegistry
from redis.asyncio import Redis

from prime_spark.events import Inference, new_event_id
from prime_spark.llm.backend import Backend
from prime_spark.llm.cache import ResponseCache
from prime_spark.llm.client import BackendError
from prime_spark.llm.metrics import LLMMetrics
from prime_spark.llm.settings import LLMConfig
from prime_spark.llm.types import (
    Answer,
    BackendHealth,
    Chunk,
    GenerateRequest,
    GenerateResult,
    LLMInterruptedError,
    LLMRejectedError,
    LLMUnavailableError,
    ModelInfo,
    Source,
)

_log = structlog.get_logger(__name__)

_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._:/-]")
_MAX_NAME_CHARS = 128


class LLMRouter:
    """Asks the backends in their order until one answers.

    `record` is given an event for each answer, with the route it took; it must not block. Without
    `redis` nothing is cached. Use it on one event loop, and `close` it.
    """

    def __init__(
        self,
        config: LLMConfig,
        *,
        redis: Redis | None = None,
        record: Callable[[Inference], object] | None = None,
        registry: CollectorRegistry = REGISTRY,
    ) -> None:
        self._metrics = LLMMetrics(registry)
        self._backends = [
            Backend(backend, self._metrics, config.models_seconds) for backend in config.backends
        ]
        self._cache: ResponseCache | None = None
        if redis is not None and config.cache is not None:
            self._cache = ResponseCache(redis, config.cache, config.backends, self._metrics)
        self._record = record

    async def close(self) -> None:
        """Close the connections to the backends."""
        for backend in self._backends:
            await backend.client.close()

    async def generate(self, request: GenerateRequest) -> GenerateResult:
        """Return the whole answer.

        Raises LLMUnavailableError, or LLMRejectedError when every backend refuses the request.
        """
        journey = _Journey(request, streamed=False)
        if (kept := await self._kept(journey)) is not None:
            return kept
        for backend in self._backends:
            with self._noting(journey, backend):
                await _raise_if_lacking(backend, request)
                async with backend.attempt():
                    answer = await backend.client.complete(request)
                return await self._arrived(journey, backend, answer)
        raise self._lost(journey)

    async def stream(self, request: GenerateRequest) -> AsyncGenerator[Chunk, None]:
        """Yield the pieces of the answer as they come; the last chunk holds the result.

        Before the first piece the next backend takes over as in `generate`, and the same errors
        are raised; after it LLMInterruptedError is.
        """
        journey = _Journey(request, streamed=True)
        if (kept := await self._kept(journey)) is not None:
            yield Chunk(text=kept.text)
            yield Chunk(text="", result=kept)
            return
        for backend in self._backends:
            answer: Answer | None = None
            try:
                with self._noting(journey, backend):
                    await _raise_if_lacking(backend, request)
                    stream = backend.client.stream(request)
                    async with backend.attempt(), aclosing(stream) as pieces:
                        async for piece in pieces:
                            if isinstance(piece, Answer):
                                answer = piece
                            else:
                                journey.streamed_chars += len(piece)
                                yield Chunk(text=piece)
            finally:
                if journey.streamed_chars and answer is None:
                    self._record_part(journey, backend)
            if answer is not None:
                yield Chunk(text="", result=await self._arrived(journey, backend, answer))
                return
        raise self._lost(journey)

    async def models(self) -> list[ModelInfo]:
        """Return the models of all backends that answer, each once.

        Raises LLMUnavailableError when none answers.
        """
        models: dict[str, ModelInfo] = {}
        reasons: dict[str, str] = {}
        lists = await asyncio.gather(
            *(backend.models() for backend in self._backends), return_exceptions=True
        )
        for backend, names in zip(self._backends, lists, strict=True):
            if isinstance(names, BackendError):
                reasons[backend.name] = str(names)
                continue
            if isinstance(names, BaseException):
                raise names
            for name in names:
                model = models.setdefault(name, ModelInfo(id=name, backends=[], sources=[]))
                model.backends.append(backend.name)
                if backend.config.source not in model.sources:
                    model.sources.append(backend.config.source)
        if len(reasons) == len(self._backends):
            raise LLMUnavailableError(reasons)
        return list(models.values())

    async def health(self) -> list[BackendHealth]:
        """Return the state of every backend."""
        return list(await asyncio.gather(*(backend.health() for backend in self._backends)))

    async def _kept(self, journey: _Journey) -> GenerateResult | None:
        """Return the answer that the cache holds."""
        if self._cache is None or not journey.request.use_cache:
            return None
        found = await self._cache.get(journey.request)
        if found is None:
            return None
        return self._finish(journey, "cache", found.backend, found.answer)

    async def _arrived(self, journey: _Journey, backend: Backend, answer: Answer) -> GenerateResult:
        """Note an answer, keep it, and return it as a result."""
        self._metrics.attempts.labels(backend.name, "answered").inc()
        for direction, tokens in (("input", answer.input_tokens), ("output", answer.output_tokens)):
            if tokens:
                self._metrics.tokens.labels(backend.name, direction).inc(tokens)
        journey.route.append(backend.name)
        result = self._finish(journey, backend.config.source, backend.name, answer)
        if self._cache is not None and journey.request.use_cache:
            await self._cache.put(journey.request, backend.name, answer)
        return result

    def _finish(
        self, journey: _Journey, source: Source, backend: str, answer: Answer
    ) -> GenerateResult:
        seconds = time.monotonic() - journey.started
        self._metrics.requests(source, "answered").inc()
        self._metrics.seconds(source).observe(seconds)
        result = GenerateResult(
            text=answer.text,
            model=answer.model,
            source=source,
            backend=backend,
            input_tokens=answer.input_tokens,
            output_tokens=answer.output_tokens,
            finish_reason=answer.finish_reason,
            latency_ms=round(seconds * 1000, 3),
        )
        if self._record is not None:
            self._record(_event(journey, result, len(answer.text)))
        return result

    def _record_part(self, journey: _Journey, backend: Backend) -> None:
        """Record a streamed answer that broke off, or that nobody wanted to hear to its end."""
        source = backend.config.source
        self._metrics.requests(source, "interrupted").inc()
        if self._record is not None:
            part = GenerateResult(
                text="",
                model=journey.request.model or backend.config.model or "unknown",
                source=source,
                backend=backend.name,
                input_tokens=None,
                output_tokens=None,
                finish_reason="interrupted",
                latency_ms=round((time.monotonic() - journey.started) * 1000, 3),
            )
            self._record(_event(journey, part, journey.streamed_chars))

    @contextlib.contextmanager
    def _noting(self, journey: _Journey, backend: Backend) -> Iterator[None]:
        """Turn a backend's failure into a line of the journey, so that the next one is asked."""
        try:
            yield
        except BackendError as error:
            outcome = "rejected" if error.rejected else "failed" if error.counts else "skipped"
            self._metrics.attempts.labels(backend.name, outcome).inc()
            _log.warning("backend did not answer", backend=backend.name, reason=str(error))
            journey.reasons[backend.name] = str(error)
            journey.rejections += error.rejected
            journey.route.append(f"{backend.name} {outcome}")
            if journey.streamed_chars:
                raise LLMInterruptedError(backend.name, str(error)) from error

    def _lost(self, journey: _Journey) -> LLMUnavailableError | LLMRejectedError:
        rejected = journey.rejections == len(self._backends)
        outcome = "rejected" if rejected else "unavailable"
        self._metrics.requests("none", outcome).inc()
        kind = LLMRejectedError if rejected else LLMUnavailableError
        return kind(journey.reasons)


class _Journey:
    """A request on its way: when it began and what became of it at each backend."""

    def __init__(self, request: GenerateRequest, *, streamed: bool) -> None:
        self.request = request
        self.streamed = streamed
        self.started = time.monotonic()
        self.reasons: dict[str, str] = {}
        self.route: list[str] = []
        self.rejections = 0
        self.streamed_chars = 0


async def _raise_if_lacking(backend: Backend, request: GenerateRequest) -> None:
    if await backend.lacks(request.model):
        raise BackendError(f"has no model {request.model!r}", counts=False, rejected=True)


def _event(journey: _Journey, result: GenerateResult, response_chars: int) -> Inference:
    return Inference(
        event_id=new_event_id(),
        time=datetime.now(UTC),
        model_name=_name(result.model),
        source=result.source,
        latency_ms=result.latency_ms,
        input_tokens=result.input_tokens,
        output_tokens=result.output_tokens,
        prompt_chars=len(journey.request.prompt),
        response_chars=response_chars,
        metadata={
            "backend": result.backend,
            "route": ", ".join(journey.route),
            "streamed": journey.streamed,
            "finish_reason": result.finish_reason,
        },
    )


def _name(model: str) -> str:
    """Return `model` as events allow it: a server may call a model what it likes."""
    name = _NOT_IN_NAMES.sub("_", model).lstrip("._:/-")[:_MAX_NAME_CHARS]
    return name or "unknown"

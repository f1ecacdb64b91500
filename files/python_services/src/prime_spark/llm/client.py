"""A client of one OpenAI-compatible `/v1` server: chat completions, plain and streamed; models."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any, TypeVar

import httpx
import msgspec

from prime_spark.config import read_credential
from prime_spark.llm.settings import BackendConfig
from prime_spark.llm.types import Answer, GenerateRequest

T = TypeVar("T")

_MAX_ANSWER_BYTES = 8 * 1024 * 1024
_MODELS_SECONDS = 5.0
_EXCERPT_CHARS = 200
_CREDENTIAL_REFUSED = {401, 403}
_BUSY = {429}
# About the request or the model it names; another backend may differ. 408 is a timeout.
_REQUEST_REFUSED = set(range(400, 500)) - {408}


class BackendError(Exception):
    """A backend did not answer.

    `counts`: it is the backend's fault, so its circuit breaker counts it. `rejected`: it refused
    this very request.
    """

    def __init__(self, reason: str, *, counts: bool = True, rejected: bool = False) -> None:
        super().__init__(reason)
        self.counts = counts
        self.rejected = rejected


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Message(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    message: _Message | None = None
    delta: _Message | None = None
    finish_reason: str | None = None


class _Completion(msgspec.Struct):
    choices: list[_Choice] = []
    model: str = ""
    usage: _Usage | None = None
    error: Any = None


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


class Client:
    """Speaks to one server. Every method raises BackendError, whatever happens."""

    def __init__(self, config: BackendConfig) -> None:
        self._config = config
        headers = {"User-Agent": "prime-spark"}
        if config.credential is not None:
            headers["Authorization"] = f"Bearer {read_credential(config.credential)}"
        self._http = httpx.AsyncClient(
            base_url=config.url.rstrip("/") + "/v1/",
            headers=headers,
            timeout=httpx.Timeout(config.timeout_seconds, connect=config.connect_seconds),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=config.concurrency),
            follow_redirects=False,
            trust_env=False,
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def complete(self, request: GenerateRequest) -> Answer:
        """Return the whole answer."""
        seconds = self._config.timeout_seconds
        try:
            async with asyncio.timeout(seconds):
                data = await self._fetch("POST", "chat/completions", self._body(request))
        except TimeoutError:
            raise BackendError(f"no answer within {seconds:g} s") from None
        completion = _decode(data, _Completion)
        _raise_if_error(completion)
        choice = completion.choices[0] if completion.choices else None
        if choice is None or choice.message is None:
            raise BackendError("its answer has no choices")
        usage = completion.usage or _Usage()
        return Answer(
            text=choice.message.content or "",
            model=completion.model or self._model(request),
            input_tokens=usage.prompt_tokens,
            output_tokens=usage.completion_tokens,
            finish_reason=choice.finish_reason,
        )

    async def stream(self, request: GenerateRequest) -> AsyncGenerator[str | Answer, None]:
        """Yield the pieces of the answer as they come, then the whole answer."""
        body = {
            **self._body(request),
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        pieces: list[str] = []
        model, usage, finish_reason = "", _Usage(), None
        end = time.monotonic() + self._config.stream_seconds
        async with aclosing(self._events(body)) as events:
            while (event := await self._next(events, end)) is not None:
                _raise_if_error(event)
                model = event.model or model
                usage = event.usage or usage
                for choice in event.choices[:1]:
                    finish_reason = choice.finish_reason or finish_reason
                    if choice.delta is not None and choice.delta.content:
                        pieces.append(choice.delta.content)
                        yield choice.delta.content
        if finish_reason is None:
            raise BackendError("its answer ended early")
        yield Answer(
            text="".join(pieces),
            model=model or self._model(request),
            input_tokens=usage.prompt_tokens,
            output_tokens=usage.completion_tokens,
            finish_reason=finish_reason,
        )

    async def models(self) -> list[str]:
        """Return the ids of the server's models."""
        try:
            async with asyncio.timeout(min(_MODELS_SECONDS, self._config.timeout_seconds)):
                data = await self._fetch("GET", "models", None)
        except TimeoutError:
            raise BackendError("no list of models in time") from None
        return [model.id for model in _decode(data, _Models).data]

    def _model(self, request: GenerateRequest) -> str:
        return request.model or self._config.model or "default"

    def _body(self, request: GenerateRequest) -> dict[str, Any]:
        messages = [{"role": "user", "content": request.prompt}]
        if request.system is not None:
            messages.insert(0, {"role": "system", "content": request.system})
        optional = {
            "model": request.model or self._config.model,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "presence_penalty": request.presence_penalty,
            "frequency_penalty": request.frequency_penalty,
            "seed": request.seed,
            "stop": request.stop,
        }
        given = {name: value for name, value in optional.items() if value is not None}
        return {"messages": messages, "max_tokens": request.max_tokens, **given}

    async def _fetch(self, method: str, path: str, body: dict[str, Any] | None) -> bytes:
        try:
            async with self._http.stream(method, path, json=body) as response:
                data = await _read(response, _MAX_ANSWER_BYTES)
                if response.status_code != httpx.codes.OK:
                    raise _refusal(response.status_code, data)
                return data
        except (httpx.HTTPError, httpx.StreamError) as error:
            raise self._failure(error) from error

    async def _events(self, body: dict[str, Any]) -> AsyncGenerator[_Completion, None]:
        """Yield the server-sent events of a streamed completion."""
        try:
            async with self._http.stream("POST", "chat/completions", json=body) as response:
                if response.status_code != httpx.codes.OK:
                    raise _refusal(response.status_code, await _read(response, 64 * 1024))
                async for data in _sse_data(response):
                    if data == b"[DONE]":
                        return
                    yield _decode(data, _Completion)
        except (httpx.HTTPError, httpx.StreamError) as error:
            raise self._failure(error) from error

    async def _next(
        self, events: AsyncGenerator[_Completion, None], end: float
    ) -> _Completion | None:
        """Return the next event, None after the last; it may take what the configuration says."""
        remaining = end - time.monotonic()
        seconds = self._config.timeout_seconds
        try:
            async with asyncio.timeout(max(min(seconds, remaining), 0)):
                return await anext(events, None)
        except TimeoutError:
            if remaining > seconds:
                raise BackendError(f"no next piece of its answer within {seconds:g} s") from None
            whole = self._config.stream_seconds
            raise BackendError(f"its answer did not end within {whole:g} s") from None

    def _failure(self, error: Exception) -> BackendError:
        if isinstance(error, httpx.ConnectTimeout):
            return BackendError(f"no connection within {self._config.connect_seconds:g} s")
        if isinstance(error, httpx.ConnectError):
            return BackendError(f"cannot connect: {error}")
        if isinstance(error, httpx.TimeoutException):
            return BackendError(f"no answer within {self._config.timeout_seconds:g} s")
        text = " ".join(str(error).split()) or type(error).__name__
        return BackendError(f"connection broke: {text}")


async def _read(response: httpx.Response, limit: int) -> bytes:
    data = bytearray()
    async for piece in response.aiter_bytes():
        data += piece
        if len(data) > limit:
            raise BackendError(f"its answer is larger than {limit} bytes")
    return bytes(data)


async def _sse_data(response: httpx.Response) -> AsyncIterator[bytes]:
    """Yield the data of each server-sent event; other fields and comments say nothing to us."""
    data: list[bytes] = []
    rest = bytearray()
    total = 0
    async for piece in response.aiter_bytes():
        total += len(piece)
        if total > _MAX_ANSWER_BYTES * 4:
            raise BackendError("its answer is too large")
        rest += piece
        *lines, last = bytes(rest).replace(b"\r\n", b"\n").split(b"\n")
        rest = bytearray(last)
        for line in lines:
            if line.startswith(b"data:"):
                data.append(line[5:].removeprefix(b" "))
            elif not line and data:
                yield b"\n".join(data)
                data = []


def _refusal(status: int, data: bytes) -> BackendError:
    excerpt = _excerpt(data)
    if status in _CREDENTIAL_REFUSED:
        return BackendError(f"it refuses our credential ({status}): {excerpt}")
    if status in _BUSY:
        return BackendError(f"it is busy ({status}): {excerpt}", counts=False)
    if status in _REQUEST_REFUSED:
        return BackendError(f"refused ({status}): {excerpt}", counts=False, rejected=True)
    return BackendError(f"failed ({status}): {excerpt}")


def _excerpt(data: bytes) -> str:
    """The message of an OpenAI-style error, or the beginning of the text."""
    try:
        decoded = msgspec.json.decode(data)
        error = decoded["error"]
        text = error if isinstance(error, str) else error["message"]
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError, TypeError):
        text = data[: 4 * _EXCERPT_CHARS].decode(errors="replace")
    text = " ".join(str(text).split())
    return text[:_EXCERPT_CHARS] or "no reason given"


def _raise_if_error(completion: _Completion) -> None:
    """Servers report what fails after the response has begun as an event of its own."""
    if completion.error is not None:
        raise BackendError(f"failed: {_excerpt(msgspec.json.encode({'error': completion.error}))}")


def _decode(data: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BackendError(f"its answer is not what the API says: {error}") from None

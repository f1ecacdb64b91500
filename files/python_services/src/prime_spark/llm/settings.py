"""Configuration of the language models."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from prime_spark.config import Config, CredentialName, NonEmpty, Positive, PositiveSeconds


class BreakerConfig(Config, frozen=True):
    """After `failures` in a row its circuit is open for `open_seconds`, then tried once."""

    failures: Positive = 3
    open_seconds: PositiveSeconds = 30.0


class BackendConfig(Config, frozen=True):
    """One OpenAI-compatible server: Ollama, llama.cpp, vLLM, or a hosted provider.

    `url` is the address before `/v1`. `timeout_seconds` is for a whole plain answer, and for each
    piece of a streamed one; `stream_seconds` for a whole streamed one. Of more than `concurrency`
    requests at a time each waits up to `queue_seconds` before the next backend is asked.
    """

    name: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")]
    source: Literal["edge", "cloud"]
    url: Annotated[str, msgspec.Meta(pattern=r"^https?://[^\s/?#@]+(/[^\s?#]*)?\Z")]
    credential: CredentialName | None = None
    model: NonEmpty | None = None
    connect_seconds: PositiveSeconds = 2.0
    timeout_seconds: PositiveSeconds = 60.0
    stream_seconds: PositiveSeconds = 600.0
    concurrency: Positive = 2
    queue_seconds: Annotated[float, msgspec.Meta(ge=0)] = 2.0
    breaker: BreakerConfig = BreakerConfig()


class CacheConfig(Config, frozen=True):
    """How long answers are kept in Redis, up to which size, and how much all take (bytes)."""

    ttl_seconds: Positive = 3600
    max_bytes: Positive = 256 * 1024
    all_bytes: Positive = 16 * 1024 * 1024


class LLMConfig(Config, frozen=True):
    """The backends in the order in which they are asked; without `cache` nothing is kept."""

    backends: Annotated[list[BackendConfig], msgspec.Meta(min_length=1, max_length=16)]
    cache: CacheConfig | None = CacheConfig()
    models_seconds: PositiveSeconds = 30.0

    def __post_init__(self) -> None:
        names = [backend.name for backend in self.backends]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"backends: the name {', '.join(twice)} is used twice")

"""Answers kept in Redis, so that the same request costs a model only once."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import structlog
from redis.asyncio import Redis

from prime_spark.llm.metrics import LLMMetrics
from prime_spark.llm.settings import BackendConfig, CacheConfig
from prime_spark.llm.types import Answer, GenerateRequest
from prime_spark.runtime.redis_client import REDIS_ERRORS, describe_redis_error
from prime_spark.runtime.shelf import CACHE, Shelf

_log = structlog.get_logger(__name__)

_PAUSE_SECONDS = 5.0
_NOT_IN_KEY = {"use_cache"}
_IN_KEY = [name for name in GenerateRequest.__struct_fields__ if name not in _NOT_IN_KEY]


class CachedAnswer(msgspec.Struct, frozen=True):
    """What is kept: the answer and the backend that gave it."""

    backend: str
    answer: Answer


class ResponseCache:
    """Best effort: an error of Redis is counted, and Redis is not asked again for a few seconds."""

    def __init__(
        self,
        redis: Redis,
        config: CacheConfig,
        backends: list[BackendConfig],
        metrics: LLMMetrics,
    ) -> None:
        limit = config.all_bytes
        self._shelf = Shelf(redis, CACHE, owner_bytes=limit, all_bytes=limit, evicts=True)
        self._config = config
        self._metrics = metrics
        self._paused_until = float("-inf")
        # The same request means something else to other servers or other default models.
        servers = [[backend.name, backend.url, backend.model] for backend in backends]
        self._salt = msgspec.json.encode([servers, _IN_KEY])

    def key(self, request: GenerateRequest) -> str:
        """Return the name of the answer to `request`: everything that shapes it, hashed."""
        digest = hashlib.sha256(self._salt)
        digest.update(msgspec.json.encode([getattr(request, name) for name in _IN_KEY]))
        return digest.hexdigest()

    async def get(self, request: GenerateRequest) -> CachedAnswer | None:
        """Return the kept answer to `request`, if there is one."""
        data = await self._call("get", lambda: self._shelf.get(self.key(request)))
        try:
            found = None if data is None else msgspec.json.decode(data, type=CachedAnswer)
        except msgspec.DecodeError:
            found = None  # of another release
        self._metrics.cache("miss" if found is None else "hit").inc()
        return found

    async def put(self, request: GenerateRequest, backend: str, answer: Answer) -> None:
        """Keep `answer`, unless it is too large or Redis has no room for it."""
        data = msgspec.json.encode(CachedAnswer(backend, answer))
        if len(data) > self._config.max_bytes:
            self._metrics.cache("too_large").inc()
            return
        outcome = await self._call("set", lambda: self._keep(self.key(request), data))
        if outcome is not None:
            self._metrics.cache(outcome).inc()

    async def _keep(self, name: str, data: bytes) -> str:
        refusal = await self._shelf.keep(name, data, self._config.ttl_seconds, "answers")
        return "stored" if refusal is None else "no_room"

    async def _call(self, what: str, call: Callable[[], Awaitable[Any]]) -> Any:
        if time.monotonic() < self._paused_until:
            return None
        try:
            return await call()
        except REDIS_ERRORS as error:
            self._paused_until = time.monotonic() + _PAUSE_SECONDS
            self._metrics.cache("error").inc()
            _log.warning("response cache unusable", call=what, error=describe_redis_error(error))
            return None

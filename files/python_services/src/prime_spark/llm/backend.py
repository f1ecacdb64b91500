"""One backend as the router sees it: client, circuit breaker, limit of concurrent requests."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

from prime_spark.llm.breaker import Breaker
from prime_spark.llm.client import BackendError, Client
from prime_spark.llm.metrics import LLMMetrics
from prime_spark.llm.settings import BackendConfig
from prime_spark.llm.types import BackendHealth

_FAILURE_SECONDS = 3.0


class Backend:
    """Lets requests through to one server, as many and as long as it can take them."""

    def __init__(self, config: BackendConfig, metrics: LLMMetrics, models_seconds: float) -> None:
        self.config = config
        self.client = Client(config)
        self._breaker = Breaker(config.breaker.failures, config.breaker.open_seconds)
        self._permits = asyncio.Semaphore(config.concurrency)
        self._running = 0
        self._waiting = 0
        self._metrics = metrics
        self._models: list[str] | None = None
        self._models_valid_until = float("-inf")
        self._models_seconds = models_seconds
        self._reading = asyncio.Lock()
        self._models_error = "not asked yet"

    @property
    def name(self) -> str:
        """The configured name."""
        return self.config.name

    @contextlib.asynccontextmanager
    async def attempt(self) -> AsyncIterator[None]:
        """A request to the server happens inside; how it ends is noted.

        Raises BackendError before it begins when the circuit is open or it has no permit in time.
        """
        self._raise_if_open()  # at once, instead of after waiting for a permit
        await self._take_permit()
        try:
            call = self._breaker.enter()
            if call is None:
                raise BackendError(self._breaker.refusal(), counts=False)
            self._running += 1
            try:
                yield
            except BackendError as error:
                if error.counts:
                    self._breaker.failed(call)
                else:
                    self._breaker.forget(call)
                raise
            except BaseException:
                self._breaker.forget(call)  # whoever asked went away
                raise
            else:
                self._breaker.succeeded(call)
            finally:
                self._running -= 1
        finally:
            self._permits.release()
            self._metrics.circuit_open.labels(self.name).set(self._breaker.state != "closed")

    async def models(self) -> list[str]:
        """Return the ids of the server's models, at most `models_seconds` old.

        Raises BackendError; a failure is remembered for a few seconds, so that it is paid for once.
        """
        async with self._reading:
            if time.monotonic() >= self._models_valid_until:
                seconds = self._models_seconds
                try:
                    self._models = await self.client.models()
                except BackendError as error:
                    self._models, self._models_error = None, str(error)
                    seconds = min(seconds, _FAILURE_SECONDS)
                self._models_valid_until = time.monotonic() + seconds
        if self._models is None:
            raise BackendError(self._models_error)
        return self._models

    async def lacks(self, model: str | None) -> bool:
        """Whether the server is known not to have `model`."""
        if model is None or self._breaker.refusal():
            return False
        try:
            return model not in await self.models()
        except BackendError:
            return False  # the request itself will tell

    async def health(self) -> BackendHealth:
        """Return the state; asks the server when that was not done recently."""
        circuit = self._breaker.state
        try:
            detail = f"models: {', '.join(await self.models()) or 'none'}"
            ok = circuit == "closed"
        except BackendError as error:
            detail, ok = str(error), False
        return BackendHealth(
            name=self.name,
            source=self.config.source,
            ok=ok,
            circuit=circuit,
            detail=detail if ok else self._breaker.refusal() or detail,
            running=self._running,
            waiting=self._waiting,
        )

    def _raise_if_open(self) -> None:
        if refusal := self._breaker.refusal():
            raise BackendError(refusal, counts=False)

    async def _take_permit(self) -> None:
        self._waiting += 1
        try:
            async with asyncio.timeout(self.config.queue_seconds):
                await self._permits.acquire()
        except TimeoutError:
            raise BackendError(
                f"busy with {self._running} requests, no permit within "
                f"{self.config.queue_seconds:g} s",
                counts=False,
            ) from None
        finally:
            self._waiting -= 1

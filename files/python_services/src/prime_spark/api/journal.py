"""What is kept of each answered request: metrics, an event, lines in the log."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import structlog

from prime_spark.api.exchange import Exchange
from prime_spark.events import ApiEvent, Inference, Metadata
from prime_spark.runtime.asgi import HttpMetrics
from prime_spark.runtime.logs import write_lines
from prime_spark.streaming.publisher import EventPublisher

_log = structlog.get_logger(__name__)

_SLOW_SECONDS = 5.0
_NOT_EVENTS = frozenset({"/health", "/metrics"})
# Long enough to gather requests under load, short enough for nobody to notice.
_GATHER_SECONDS = 0.05
_GATHER_MOST = 256


class Journal:
    """Gathers answered requests and an auditor's lines, and writes them a few at a time.

    One by one, each would bring code and data into the processor that the next request has driven
    out again. `publisher` is given an event for each request but the monitoring's own. What a
    process that is killed has gathered is lost with it.
    """

    def __init__(self, metrics: HttpMetrics, publisher: EventPublisher) -> None:
        self._metrics = metrics
        self._publisher = publisher
        self._answered: list[Exchange] = []
        self._inferences: list[Inference] = []
        self._lines: list[tuple[float, dict[str, Any]]] = []
        self._timer: asyncio.TimerHandle | None = None

    def note(self, line: dict[str, Any]) -> None:
        """Write an auditor's line soon."""
        self._lines.append((time.time(), line))
        self._write_soon(len(self._lines))

    def add(self, exchange: Exchange) -> None:
        """Write about an answered request soon; say at once what went wrong with it."""
        self._answered.append(exchange)
        self._write_soon(len(self._answered))
        if exchange.status >= 500 or exchange.seconds >= _SLOW_SECONDS:
            _warn(exchange)

    def infer(self, event: Inference) -> None:
        """Publish an inference soon."""
        self._inferences.append(event)
        self._write_soon(len(self._inferences))

    def write(self) -> None:
        """Write what was gathered now: before somebody reads the metrics, and at the end."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        answered, self._answered = self._answered, []
        inferences, self._inferences = self._inferences, []
        lines, self._lines = self._lines, []
        for exchange in answered:
            self._metrics.count(
                exchange.method, exchange.endpoint, exchange.status, exchange.seconds
            )
            if exchange.path not in _NOT_EVENTS:
                self._publisher.stream_api_event(_event(exchange))
        for event in inferences:
            self._publisher.stream_llm_inference(event)
        if lines:  # last: nobody else's lot depends on whether the log can be written
            write_lines("audit", lines)

    def _write_soon(self, gathered: int) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_GATHER_SECONDS, self.write)
        elif gathered >= _GATHER_MOST:
            self.write()


def _event(exchange: Exchange) -> ApiEvent:
    metadata: Metadata = {"client": exchange.client}
    if exchange.audit is not None:
        metadata["audit"] = exchange.audit
    return ApiEvent(
        time=datetime.fromtimestamp(exchange.answered, UTC),
        event_id=UUID(exchange.id),
        method=exchange.method,
        endpoint=exchange.endpoint,
        status=exchange.status,
        duration_ms=_milliseconds(exchange),
        user_name=exchange.user,
        metadata=metadata,
    )


def _warn(exchange: Exchange) -> None:
    _log.warning(
        "request",
        request_id=exchange.id,
        method=exchange.method,
        endpoint=exchange.endpoint,
        status=exchange.status,
        milliseconds=_milliseconds(exchange),
        user=exchange.user,
        client=exchange.client,
    )


def _milliseconds(exchange: Exchange) -> float:
    return round(exchange.seconds * 1000, 3)

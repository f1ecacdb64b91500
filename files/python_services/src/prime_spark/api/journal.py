"""What is kept of each answered request: metrics, an event, a line in the log."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import structlog

from prime_spark.api.exchange import Exchange
from prime_spark.events import ApiEvent, Metadata
from prime_spark.runtime.asgi import HttpMetrics
from prime_spark.streaming.publisher import EventPublisher

_log = structlog.get_logger(__name__)

_SLOW_SECONDS = 5.0
_NOT_EVENTS = frozenset({"/health", "/metrics"})


class Journal:
    """Notes what was answered, and what an auditor wants to know.

    `publisher` is given an event for each request but the monitoring's own.
    """

    def __init__(self, metrics: HttpMetrics, publisher: EventPublisher) -> None:
        self._metrics = metrics
        self._publisher = publisher

    def note(self, line: dict[str, Any]) -> None:
        """Write an auditor's line."""
        _log.info("audit", **line)

    def add(self, exchange: Exchange) -> None:
        """Note an answered request."""
        self._metrics.count(exchange.method, exchange.endpoint, exchange.status, exchange.seconds)
        if exchange.path not in _NOT_EVENTS:
            self._publisher.stream_api_event(_event(exchange))
        if exchange.status >= 500 or exchange.seconds >= _SLOW_SECONDS:
            _warn(exchange)


def _event(exchange: Exchange) -> ApiEvent:
    metadata: Metadata = {"client": exchange.client}
    if exchange.audit is not None:
        metadata["audit"] = exchange.audit
    return ApiEvent(
        time=datetime.fromtimestamp(exchange.answered, UTC),
        event_id=exchange.id,
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

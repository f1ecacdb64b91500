"""What is kept of each answered request: metrics, an event, a line in the log."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import structlog

from prime_spark.api.request_context import RequestContext
from prime_spark.events import ApiEvent, Metadata
from prime_spark.kafka.publisher import EventPublisher
from prime_spark.runtime.asgi import HttpMetrics

_log = structlog.get_logger(__name__)

_SLOW_SECONDS = 5.0
_NOT_EVENTS = frozenset({"/health", "/metrics"})


class RequestLog:
    """Notes what was answered, and what an auditor wants to know.

    `publisher` is given an event for each request but the monitoring's own.
    """

    def __init__(self, metrics: HttpMetrics, publisher: EventPublisher) -> None:
        self._metrics = metrics
        self._publisher = publisher

    def note(self, line: dict[str, Any]) -> None:
        """Write an auditor's line."""
        _log.info("audit", **line)

    def add(self, context: RequestContext) -> None:
        """Note an answered request."""
        self._metrics.count(context.method, context.endpoint, context.status, context.seconds)
        if context.path not in _NOT_EVENTS:
            self._publisher.stream_api_event(_event(context))
        if context.status >= 500 or context.seconds >= _SLOW_SECONDS:
            _warn(context)


def _event(context: RequestContext) -> ApiEvent:
    metadata: Metadata = {"client": context.client}
    if context.audit is not None:
        metadata["audit"] = context.audit
    return ApiEvent(
        time=datetime.fromtimestamp(context.answered, UTC),
        event_id=context.id,
        method=context.method,
        endpoint=context.endpoint,
        status=context.status,
        duration_ms=_milliseconds(context),
        user_name=context.user,
        metadata=metadata,
    )


def _warn(context: RequestContext) -> None:
    _log.warning(
        "request",
        request_id=context.id,
        method=context.method,
        endpoint=context.endpoint,
        status=context.status,
        milliseconds=_milliseconds(context),
        user=context.user,
        client=context.client,
    )


def _milliseconds(context: RequestContext) -> float:
    return round(context.seconds * 1000, 3)

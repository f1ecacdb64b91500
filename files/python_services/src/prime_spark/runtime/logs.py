"""Structured logs: one JSON object per line on stdout, for the journal."""

from __future__ import annotations

import logging
import sys

import structlog

# Chatty about every connection or request; what matters is in our own log lines and metrics.
_NOISY = ("aiokafka", "kafka", "uvicorn.access", "asyncio", "httpx", "httpcore")


def configure_logging(service: str, level: str = "info") -> None:
    """Send structlog's and the standard library's records to stdout as JSON."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(_number(level)),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder()],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(default=repr),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(_number(level))
    for name in _NOISY:
        logging.getLogger(name).setLevel(max(logging.WARNING, _number(level)))
    structlog.contextvars.bind_contextvars(service=service)


def _number(level: str) -> int:
    return logging.getLevelNamesMapping()[level.upper()]

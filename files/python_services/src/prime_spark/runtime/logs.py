"""Structured logs: one JSON object per line on stdout, for the journal."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

import msgspec
import structlog

# Chatty about every connection or request; what matters is in our own log lines and metrics.
_NOISY = ("aiokafka", "kafka", "uvicorn.access", "asyncio", "httpx", "httpcore")


def configure_logging(service: str, level: str = "info") -> None:
    """Send structlog's and the standard library's records to stdout as JSON.

    Our own lines take the short way: `logging` would cost several times as much for each, and
    the API writes one for whatever an auditor wants to know.
    """
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*shared, structlog.processors.JSONRenderer(serializer=_json)],
        wrapper_class=structlog.make_filtering_bound_logger(_number(level)),
        logger_factory=structlog.BytesLoggerFactory(sys.stdout.buffer),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder()],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(serializer=_text),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(_number(level))
    for name in _NOISY:
        logging.getLogger(name).setLevel(max(logging.WARNING, _number(level)))
    structlog.contextvars.bind_contextvars(service=service)


def _json(line: dict[str, Any], **_: object) -> bytes:
    """Return a line as JSON; what JSON cannot express is shown as Python would."""
    try:
        return msgspec.json.encode(line, enc_hook=repr)
    except (TypeError, ValueError, msgspec.MsgspecError):  # half a surrogate pair, say
        return json.dumps(line, default=repr).encode()


def _text(line: dict[str, Any], **_: object) -> str:
    return _json(line).decode()


def _number(level: str) -> int:
    return logging.getLevelNamesMapping()[level.upper()]

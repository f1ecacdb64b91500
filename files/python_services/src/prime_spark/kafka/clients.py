"""Options that all our Kafka clients share."""

from __future__ import annotations

from typing import Any

from prime_spark.config import KafkaConfig, read_credential


def connection_options(config: KafkaConfig, client_id: str) -> dict[str, Any]:
    """Return the keyword arguments with which an aiokafka client connects and logs in."""
    return {
        "bootstrap_servers": config.bootstrap_servers,
        "client_id": client_id,
        "security_protocol": config.security_protocol,
        "sasl_mechanism": config.sasl_mechanism,
        "sasl_plain_username": config.username,
        "sasl_plain_password": read_credential(config.credential),
        # A client left from before a broker was replaced finds the new one within a minute.
        "metadata_max_age_ms": 60_000,
        "retry_backoff_ms": 250,
    }


def describe(error: BaseException) -> str:
    """Return one line about a client error: its kind, and its message where it has one."""
    text = " ".join(str(error).split())
    name = type(error).__name__
    return name if text in {"", name} else f"{name}: {text}" if name not in text else text

"""Configuration of the coordinator."""

from __future__ import annotations

from prime_spark.config import Config, Positive, PositiveSeconds


class CoordinatorConfig(Config, frozen=True):
    """How many tasks of a type may wait, how long for, and how large a payload is (bytes)."""

    max_queued: Positive = 1000
    max_payload_bytes: Positive = 64 * 1024
    queue_seconds: PositiveSeconds = 24 * 3600.0

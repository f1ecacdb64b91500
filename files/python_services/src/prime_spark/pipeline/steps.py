"""The steps of the pipeline. `validate` is pure; `extract` reads Redis, `load` writes rows."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeAlias

import redis

from prime_spark.config import Config, DatabaseConfig, RedisConfig, read_credential
from prime_spark.events import MAX_AGE, MAX_FUTURE
from prime_spark.timeseries.connection import connect

_KEYS = "metrics:*"
_FIELDS = {"cpu": "cpu_percent", "memory": "memory_percent", "disk": "disk_percent"}
# A number of JSON; Python's float takes digits of any script, underscores and blanks as well.
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_DEVICE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}")
_TIMEOUT_SECONDS = 10.0
_COMMAND_SECONDS = 60.0

# Device to the fields of its hash.
Extracted: TypeAlias = dict[str, dict[str, str]]
# time, device_id, metric_name, value
Row: TypeAlias = tuple[datetime, str, str, float]


class Settings(Config, frozen=True):
    """Where the samples are, and where they go."""

    redis: RedisConfig
    database: DatabaseConfig


@dataclass
class Validated:
    """Rows to store, and by reason how many values were dropped."""

    rows: list[Row] = field(default_factory=list)
    dropped: dict[str, int] = field(default_factory=dict)

    def drop(self, reason: str, values: int = 1) -> None:
        """Count values that are not stored."""
        self.dropped[reason] = self.dropped.get(reason, 0) + values


@dataclass(frozen=True)
class Summary:
    """What a run did: devices and values seen, rows new and there already, values dropped."""

    devices: int
    values: int
    inserted: int
    duplicates: int
    dropped: dict[str, int]


def extract(config: RedisConfig) -> Extracted:
    """Return the hash `metrics:<device>` of every device; raises redis.RedisError."""
    client = redis.Redis(
        host=config.host,
        port=config.port,
        username=config.username,
        password=read_credential(config.credential),
        socket_timeout=_TIMEOUT_SECONDS,
        socket_connect_timeout=_TIMEOUT_SECONDS,
        decode_responses=True,
        encoding_errors="replace",
    )
    with client:
        found: Extracted = {}
        for key in sorted(client.scan_iter(match=_KEYS, count=500)):
            values: Any = client.hgetall(key)
            if values:  # it may have expired meanwhile
                found[key.partition(":")[2]] = values
        return found


def validate(samples: Mapping[str, Mapping[str, str]], now: datetime) -> Validated:
    """Return the rows that `samples` become; a bad value costs only itself.

    Percentages are within 0..100. The time is the sample's own, so that a repeated run makes
    the same rows; a sample without a usable one, more than an hour ahead of `now`, or of a clock
    that was never set, is dropped.
    """
    result = Validated()
    for device, fields in sorted(samples.items()):
        present = [name for name in _FIELDS if name in fields]
        moment = _time(fields.get("time", ""))
        if not _DEVICE.fullmatch(device):
            result.drop("device name", len(present))
        elif moment is None:
            result.drop("time", len(present))
        elif moment - now > MAX_FUTURE:
            result.drop("future", len(present))
        elif now - moment > MAX_AGE:
            result.drop("past", len(present))
        else:
            for name in present:
                value = _number(fields[name])
                if value is None:
                    result.drop("not a number")
                elif not 0 <= value <= 100:
                    result.drop("out of range")
                else:
                    result.rows.append((moment, device, _FIELDS[name], value))
    return result


async def load(config: DatabaseConfig, rows: list[Row]) -> int:
    """Store what is not there yet, all in one transaction; return how many rows were new."""
    connection = await connect(config, "prime-spark-pipeline", command_timeout=_COMMAND_SECONDS)
    try:
        columns = [list(column) for column in zip(*rows, strict=True)] or [[], [], [], []]
        answer: str = await connection.execute(
            "INSERT INTO public.device_metrics (time, device_id, metric_name, value)"
            " SELECT * FROM unnest($1::timestamptz[], $2::text[], $3::text[], $4::float8[])"
            " ON CONFLICT DO NOTHING",
            *columns,
        )
        return int(answer.rsplit(" ", 1)[1])
    finally:
        await connection.close(timeout=5)


def sync(settings: Settings, now: datetime | None = None) -> Summary:
    """Run the steps one after the other; what they raise is for the caller to retry."""
    samples = extract(settings.redis)
    validated = validate(samples, now or datetime.now(UTC))
    inserted = asyncio.run(load(settings.database, validated.rows))
    dropped = sum(validated.dropped.values())
    return Summary(
        devices=len(samples),
        values=len(validated.rows) + dropped,
        inserted=inserted,
        duplicates=len(validated.rows) - inserted,
        dropped=validated.dropped,
    )


def _time(text: str) -> datetime | None:
    try:
        moment = datetime.fromisoformat(text)
        return moment.astimezone(UTC) if moment.tzinfo else None
    except (ValueError, OverflowError):
        return None


def _number(text: str) -> float | None:
    if _NUMBER.fullmatch(text) is None:
        return None
    value = float(text)  # 1e999 is infinite
    return value if math.isfinite(value) else None

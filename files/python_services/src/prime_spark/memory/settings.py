"""Configuration of the memory."""

from __future__ import annotations

from typing import Annotated

import msgspec

from prime_spark.config import Config, DatabaseConfig, NonEmpty, PositiveSeconds, RedisConfig

Bytes = Annotated[int, msgspec.Meta(ge=1)]
Seconds = Annotated[int, msgspec.Meta(ge=1, le=366 * 24 * 3600)]


class FastTierConfig(Config, frozen=True):
    """Tier 1, Redis: how long and how large.

    `copy_seconds` is the life of what was found in another tier and copied here; a copy may be
    that old when another process has changed the original. A user's values take at most
    `user_bytes`, all values `all_bytes`; each counts 1 KiB more than it has.
    """

    default_ttl: Seconds = 3600
    max_ttl: Seconds = 30 * 24 * 3600
    copy_seconds: Seconds = 60
    max_bytes: Bytes = 256 * 1024
    user_bytes: Bytes = 16 * 1024 * 1024
    all_bytes: Bytes = 48 * 1024 * 1024
    timeout_seconds: PositiveSeconds = 1.0


class NasTierConfig(Config, frozen=True):
    """Tier 2, files in `directory`, which lies on the mounted share and holds its sentinel.

    At most `max_calls` threads are in the file system's hands at a time, however long it hangs.
    Quotas as in tier 1.
    """

    directory: NonEmpty
    max_bytes: Bytes = 16 * 1024 * 1024
    user_bytes: Bytes = 1024 * 1024 * 1024
    all_bytes: Bytes = 8 * 1024 * 1024 * 1024
    timeout_seconds: PositiveSeconds = 5.0
    max_calls: Annotated[int, msgspec.Meta(ge=1, le=64)] = 4


class DatabaseTierConfig(Config, frozen=True):
    """Tier 3, PostgreSQL, with quotas as in tier 1."""

    database: DatabaseConfig
    max_bytes: Bytes = 1024 * 1024
    user_bytes: Bytes = 64 * 1024 * 1024
    all_bytes: Bytes = 512 * 1024 * 1024
    timeout_seconds: PositiveSeconds = 5.0
    max_connections: Annotated[int, msgspec.Meta(ge=1, le=50)] = 4


class MemoryConfig(Config, frozen=True):
    """The three tiers. A tier that does not answer is not asked again for `cooldown_seconds`.

    `state` is a file of this process alone: whose file on the NAS takes how much, and which values
    of a tier are outdated.
    """

    redis: RedisConfig
    nas: NasTierConfig
    database: DatabaseTierConfig
    fast: FastTierConfig = FastTierConfig()
    cooldown_seconds: PositiveSeconds = 2.0
    state: NonEmpty = "/var/lib/prime-spark-api/memory.sqlite"

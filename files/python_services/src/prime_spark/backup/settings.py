"""Configuration of prime-spark-backup."""

from __future__ import annotations

from typing import Annotated

import msgspec

from prime_spark.config import (
    Config,
    CredentialName,
    HttpConfig,
    LogLevel,
    NonEmpty,
    Positive,
    PositiveSeconds,
    Secret,
)

BackupName = Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z0-9-]{0,31}\Z")]
SlotName = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9_]{1,63}\Z")]


class RepositoryConfig(Config, frozen=True):
    """The restic repository of this host: where it is, and who may add to it."""

    url: Annotated[str, msgspec.Meta(pattern=r"^rest:https?://[^\s:/]+:\d{1,5}/\S*/\Z")]
    username: NonEmpty
    credential: CredentialName  # password of the storage server
    key: Secret  # encrypts the repository


class PostgresConfig(Config, frozen=True):
    """The database server. `command` is put before each of PostgreSQL's own programs.

    The server writes its WAL into `wal_directory`, which `command`'s programs see as `wal_path`.
    """

    command: tuple[str, ...]
    wal_directory: NonEmpty
    wal_path: NonEmpty
    database: NonEmpty  # whose tables the manifest counts
    slot: SlotName = "prime_spark_backup"
    base_seconds: PositiveSeconds = 86400
    wal_seconds: PositiveSeconds = 30
    # What waits for a storage server that is away. Beyond it the WAL is given up: a gap in the
    # backup is better than a full disk.
    wal_bytes: Positive = 4 * 2**30


class CopyConfig(Config, frozen=True):
    """Data that are copied as they are at one moment; one of the three ways.

    `command` prints them, `sqlite` are databases, `paths` files that nobody changes in place.
    """

    command: tuple[str, ...] = ()
    sqlite: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    seconds: PositiveSeconds = 3600

    def __post_init__(self) -> None:
        if sum(bool(way) for way in (self.command, self.sqlite, self.paths)) != 1:
            raise ValueError("expected one of command, sqlite and paths")


class BackupConfig(Config, frozen=True):
    """Configuration of prime-spark-backup."""

    http: HttpConfig
    host: NonEmpty
    state_directory: NonEmpty
    repository: RepositoryConfig
    restic: NonEmpty = "restic"
    postgres: dict[BackupName, PostgresConfig] = msgspec.field(default_factory=dict)
    copies: dict[BackupName, CopyConfig] = msgspec.field(default_factory=dict)
    retry_seconds: PositiveSeconds = 30
    log_level: LogLevel = "info"

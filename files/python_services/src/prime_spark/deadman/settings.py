"""Configuration of the dead-man receiver."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from prime_spark.config import (
    Config,
    CredentialName,
    HttpConfig,
    LogLevel,
    NonEmpty,
    Port,
    PositiveSeconds,
)

Url = Annotated[str, msgspec.Meta(pattern=r"^https?://[^\s/]+(/\S*)?\Z")]
ChannelName = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9_-]{0,31}\Z")]


class WebhookConfig(Config, frozen=True):
    """Where an alarm is posted: as JSON with a `text` (Slack, Mattermost), or as text (ntfy).

    `credential` is a token for `Authorization: Bearer`.
    """

    url: Url
    format: Literal["json", "text"] = "json"
    credential: CredentialName | None = None


class EmailConfig(Config, frozen=True):
    """The mail server that takes an alarm; `username` and `credential` where it wants a login."""

    host: NonEmpty
    sender: NonEmpty
    recipients: Annotated[list[NonEmpty], msgspec.Meta(min_length=1)]
    port: Port = 587
    starttls: bool = True
    username: str = ""
    credential: CredentialName | None = None

    def __post_init__(self) -> None:
        if self.username and not self.credential:
            raise ValueError("username needs a credential, its password")


class DeadmanConfig(Config, frozen=True):
    """Configuration of prime-spark-deadman.

    The heartbeat is the alert named `alert`; `credential` is the token that its sender shows.
    """

    http: HttpConfig
    credential: CredentialName
    state_path: NonEmpty
    timeout_seconds: PositiveSeconds = 300.0
    repeat_seconds: PositiveSeconds = 14400.0
    alert: NonEmpty = "DeadMansSwitch"
    webhooks: dict[ChannelName, WebhookConfig] = msgspec.field(default_factory=dict)
    email: EmailConfig | None = None
    log_level: LogLevel = "info"

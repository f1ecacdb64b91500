"""Configuration of the hook."""

from __future__ import annotations

import os
import re
from typing import Annotated, Literal, get_args

import msgspec

from prime_spark.accounts.lockout import LockoutConfig
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
from prime_spark.runtime.window import Rate

AbsolutePath = Annotated[str, msgspec.Meta(pattern=r"^/[^\0]*\Z")]
HttpUrl = Annotated[str, msgspec.Meta(pattern=r"^https?://[^\s/@]+(/\S*)?\Z")]
Subject = Literal["failed", "waiting", "breakers", "drift"]
VariableName = Annotated[str, msgspec.Meta(pattern=r"^[A-Z_][A-Z0-9_]*\Z")]


class AnsibleConfig(Config, frozen=True):
    """What runs are made with: a checkout of the playbooks, and the programs of Ansible.

    `inventory` is a path in the checkout. `connections` is an inventory beside it that says how
    this host reaches the others: of a variable of a host it counts. `environment` is what a run
    sees beside `PATH`, `HOME` and `LANG`; no secret.
    """

    checkout: AbsolutePath
    inventory: NonEmpty
    programs: AbsolutePath
    known_hosts: AbsolutePath = "/etc/ssh/ssh_known_hosts"
    environment: dict[VariableName, str] = msgspec.field(default_factory=dict)
    connections: AbsolutePath | None = None

    def inventories(self) -> list[str]:
        """Return the inventories in the order in which Ansible has to read them."""
        inventory = os.path.join(self.checkout, self.inventory)  # noqa: PTH118
        return [inventory, *([self.connections] if self.connections else [])]


class RepositoryConfig(Config, frozen=True):
    """Where the playbooks come from, and which refs are allowed: full names, `refs/heads/main`.

    `environment` is what Git sees beside `PATH`, `HOME` and `LANG`: `GIT_SSH_COMMAND`, say. No
    command of Git takes longer than `timeout_seconds`, half of what stops a service that hangs.
    """

    url: Annotated[str, msgspec.Meta(pattern=r"^[^-\s]\S*\Z")]
    refs: Annotated[
        list[Annotated[str, msgspec.Meta(pattern=r"^refs/(heads|tags)/[A-Za-z0-9._/-]+\Z")]],
        msgspec.Meta(min_length=1),
    ]
    poll_seconds: PositiveSeconds = 60.0
    timeout_seconds: Annotated[PositiveSeconds, msgspec.Meta(le=60)] = 60.0
    environment: dict[VariableName, str] = msgspec.field(default_factory=dict)

    def __post_init__(self) -> None:
        if re.match(r"https?://[^/]*@", self.url, re.IGNORECASE):
            raise ValueError(
                "url: expected no user or password: they belong into a credential helper of Git's"
            )


class CommitStatusConfig(Config, frozen=True):
    """Where the runs of commits are told: the base address of the API, and the repository there.

    `credential` names the token; `run_url` is the address of a run's page, with `{run}` in it.
    """

    kind: Literal["github", "gitlab", "forgejo"]
    url: HttpUrl
    project: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)+\Z")]
    credential: CredentialName
    run_url: HttpUrl | None = None


class AlertmanagerConfig(Config, frozen=True):
    """Which Alertmanager is told of failed runs, plans that wait, drift and breakers.

    `tells` says of which of these. The page shows what fires there. `credential` is the password
    of `username`; `page_url` is where a person looks.
    """

    url: HttpUrl
    username: NonEmpty | None = None
    credential: CredentialName | None = None
    page_url: HttpUrl | None = None
    tells: list[Subject] = msgspec.field(default_factory=lambda: list(get_args(Subject)))

    def __post_init__(self) -> None:
        if (self.username is None) != (self.credential is None):
            raise ValueError("expected both of username and credential, or none")


class LimitsConfig(Config, frozen=True):
    """How much is taken, done at a time and kept.

    `unverified_bytes` are of all bodies together whose signature has not been looked at yet.
    The directories of runs that have ended have `kept_bytes` at most together with the newest.
    `grace_seconds` is what Ansible has to end by itself when its run is cancelled.
    """

    body_bytes: Positive = 256 * 1024
    unverified_bytes: Positive = 8 * 1024 * 1024
    queued_runs: Positive = 200
    parallel_runs: Positive = 2
    grace_seconds: PositiveSeconds = 15.0
    event_bytes: Positive = 64 * 1024 * 1024
    kept_runs: Positive = 500
    kept_bytes: Positive = 1024 * 1024 * 1024


class PageConfig(Config, frozen=True):
    """Who may log in to the page, and how long that lasts.

    The credential `users` holds the API's users. A session ends `idle_seconds` after its last use,
    and `max_seconds` after it began. An address may try `logins`, whatever the names.
    """

    users: Secret
    idle_seconds: PositiveSeconds = 8 * 3600.0
    max_seconds: PositiveSeconds = 7 * 24 * 3600.0
    logins: Rate = "30/minute"
    lockout: LockoutConfig = LockoutConfig()


class HookConfig(Config, frozen=True):
    """Configuration of prime-spark-hook.

    `rules` is a file, as seen from the directory of the configuration. `run_socket` is the socket
    whose connections systemd makes units of; without it, runs are processes of their own.
    Without `web` there is no page. `intake` is a second address that takes deliveries and answers
    nothing else, for a proxy that the internet reaches. `vpn_status` is the file with the state of
    the VPN's peers.
    """

    http: HttpConfig
    rules: NonEmpty
    ansible: AnsibleConfig
    repository: RepositoryConfig | None = None
    commit_status: CommitStatusConfig | None = None
    alertmanager: AlertmanagerConfig | None = None
    state: AbsolutePath = "/var/lib/prime-spark-hook"
    run_socket: AbsolutePath | None = None
    limits: LimitsConfig = LimitsConfig()
    intake: HttpConfig | None = None
    web: PageConfig | None = None
    vpn_status: AbsolutePath = "/run/prime-spark/vpn.json"
    log_level: LogLevel = "info"

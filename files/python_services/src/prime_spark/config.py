"""Configuration of the services: strict JSON files, with secrets kept out of them.

A configuration file is decoded into the `msgspec.Struct` of its service. An unknown key, a wrong
type or a value out of range is an error that names the place. Secrets are never in the file: a
`credential` names a file in `$CREDENTIALS_DIRECTORY`, where systemd's `LoadCredential=` puts it.
"""

from __future__ import annotations

import argparse
import difflib
import ipaddress
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, BinaryIO, Literal, NoReturn, TypeVar

import msgspec

from prime_spark import __version__

NonEmpty = Annotated[str, msgspec.Meta(min_length=1)]
Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
Positive = Annotated[int, msgspec.Meta(ge=1)]
PositiveSeconds = Annotated[float, msgspec.Meta(gt=0)]
DeviceId = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")]
TopicName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._-]{1,249}\Z")]
CredentialName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}\Z")]
LogLevel = Literal["debug", "info", "warning", "error"]

# Passwords to try, by user; never arguments, they come by standard input.
Attempts = dict[str, list[str]]

T = TypeVar("T", bound="Config")


class ConfigError(Exception):
    """The configuration cannot be used; the message says where and why."""


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of every block of configuration: immutable, and no key is ignored."""


class KafkaConfig(Config, frozen=True):
    """How to reach Kafka. The VPN encrypts, SCRAM authenticates."""

    bootstrap_servers: Annotated[
        list[Annotated[str, msgspec.Meta(pattern=r"^[^\s:]+:\d{1,5}\Z")]],
        msgspec.Meta(min_length=1),
    ]
    username: NonEmpty
    credential: CredentialName
    security_protocol: Literal["SASL_PLAINTEXT"] = "SASL_PLAINTEXT"
    sasl_mechanism: Literal["SCRAM-SHA-512", "SCRAM-SHA-256"] = "SCRAM-SHA-512"


class RedisConfig(Config, frozen=True):
    """How to reach Redis, as an ACL user."""

    host: NonEmpty
    username: NonEmpty
    credential: CredentialName
    port: Port = 6379


class DatabaseConfig(Config, frozen=True):
    """How to reach PostgreSQL."""

    host: NonEmpty
    name: NonEmpty
    username: NonEmpty
    credential: CredentialName
    port: Port = 5432


class Secret(Config, frozen=True):
    """A secret of its own, by the name of its credential."""

    credential: CredentialName


class HttpConfig(Config, frozen=True):
    """Where /health and /metrics are served. Never a wildcard: the VPN address or loopback.

    /health is for everybody there, /metrics for the host itself and for `metrics_readers`.
    """

    host: NonEmpty
    port: Port
    metrics_readers: tuple[NonEmpty, ...] = ()  # addresses and networks

    def __post_init__(self) -> None:
        if self.host in {"0.0.0.0", "::", "*"}:  # noqa: S104 (refused here, not used)
            raise ValueError("host must be the VPN address or loopback, not every address")
        for reader in self.metrics_readers:
            ipaddress.ip_network(reader)  # raises ValueError, which names it

    def may_read_metrics(self, client: str) -> bool:
        """Whether /metrics is for the client with this address."""
        address = ipaddress.ip_address(client)
        return client == self.host or any(
            address in ipaddress.ip_network(reader) for reader in self.metrics_readers
        )


def read_credential(name: str) -> str:
    """Return the secret `name` from `$CREDENTIALS_DIRECTORY`, without its final newline."""
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    if not directory:
        raise ConfigError(
            f"credential {name!r}: $CREDENTIALS_DIRECTORY is not set (systemd sets it for units "
            "with LoadCredential=)"
        )
    path = Path(directory) / name
    try:
        secret = path.read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"credential {name!r}: cannot read {path}: {error}") from error
    if not secret:
        raise ConfigError(f"credential {name!r}: {path} is empty")
    return secret


def read_attempts(stream: BinaryIO) -> Attempts:
    """Read passwords to try as JSON {"user": ["password"]}; raise ConfigError without a value."""
    try:
        return msgspec.json.decode(stream.read(), type=Attempts)
    except msgspec.MsgspecError:
        raise ConfigError('standard input: expected JSON {"user": ["password"]}') from None


def answer(content: object) -> int:
    """Print one line of JSON, the answer of a command; returns the exit status 0."""
    sys.stdout.buffer.write(msgspec.json.encode(content) + b"\n")
    return 0


def decode_config(data: bytes | str, config_type: type[T], source: str = "configuration") -> T:
    """Decode JSON `data` strictly into `config_type`; raise ConfigError naming the place."""
    try:
        return msgspec.json.decode(data, type=config_type)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{source}: {error}{suggestion(str(error), config_type)}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{source}: not valid JSON: {error}") from None


def load_config(path: Path, config_type: type[T]) -> T:
    """Read and decode the configuration file at `path`."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read the configuration: {error}") from error
    return decode_config(data, config_type, str(path))


def credentials_of(config: msgspec.Struct) -> set[str]:
    """Return the names of all credentials that `config` and its blocks refer to."""
    names: set[str] = set()
    for field in config.__struct_fields__:
        value = getattr(config, field)
        if field == "credential" and value is not None:
            names.add(value)
        items = value.values() if isinstance(value, dict) else value
        for item in items if isinstance(value, dict | list) else [value]:
            if isinstance(item, msgspec.Struct):
                names |= credentials_of(item)
    return names


def check_credentials(config: msgspec.Struct) -> None:
    """Raise ConfigError when a credential that `config` names cannot be read."""
    for name in sorted(credentials_of(config)):
        read_credential(name)


def argument_parser(prog: str, description: str) -> argparse.ArgumentParser:
    """Return the parser every command starts from: --config, --check-config, --version."""
    parser = argparse.ArgumentParser(prog=prog, description=description)
    parser.add_argument("--config", type=Path, required=True, help="configuration file (JSON)")
    parser.add_argument(
        "--check-config",
        action="store_true",
        help="validate the configuration (and the credentials, where "
        "$CREDENTIALS_DIRECTORY is set) and exit",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return parser


def config_from_arguments(arguments: argparse.Namespace, config_type: type[T]) -> T:
    """Load the file that the command line names; exit 2 with one line when it is unusable.

    With --check-config this prints a line and exits 0 instead of returning.
    """
    try:
        config = load_config(arguments.config, config_type)
        if not arguments.check_config or os.environ.get("CREDENTIALS_DIRECTORY"):
            check_credentials(config)
    except ConfigError as error:
        fail(str(error))
    if arguments.check_config:
        sys.stdout.write(f"{arguments.config}: ok\n")
        raise SystemExit(0)
    return config


def service_main(
    prog: str,
    description: str,
    config_type: type[T],
    run: Callable[[T], int],
    argv: Sequence[str] | None = None,
) -> int:
    """Parse the command line of a service that takes only a configuration, and run it."""
    arguments = argument_parser(prog, description).parse_args(argv)
    return run(config_from_arguments(arguments, config_type))


def fail(message: str) -> NoReturn:
    """Print `message` to stderr and exit with status 2 (usage or configuration)."""
    sys.stderr.write(f"error: {message}\n")
    raise SystemExit(2)


def suggestion(message: str, config_type: type[Config]) -> str:
    """Return ' (did you mean ...?)' for the message about an unknown key, or nothing."""
    found = re.search(r"unknown field `([^`]*)`", message)
    if not found:
        return ""
    known = {field for struct in _blocks(config_type) for field in struct.__struct_fields__}
    close = difflib.get_close_matches(found[1], sorted(known), n=1)
    return f" (did you mean `{close[0]}`?)" if close else ""


def _blocks(config_type: type[msgspec.Struct]) -> set[type[msgspec.Struct]]:
    """Return `config_type` and every struct type that its fields mention."""
    seen: set[type[msgspec.Struct]] = set()
    waiting: list[object] = [msgspec.inspect.type_info(config_type)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, msgspec.inspect.StructType):
            if node.cls in seen:
                continue
            seen.add(node.cls)
            waiting.extend(field.type for field in node.fields)
        elif isinstance(node, msgspec.inspect.UnionType):
            waiting.extend(node.types)
        elif isinstance(node, msgspec.inspect.DictType):
            waiting.append(node.value_type)
        elif isinstance(node, msgspec.inspect.ListType):
            waiting.append(node.item_type)
    return seen

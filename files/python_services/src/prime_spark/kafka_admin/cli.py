"""prime-spark-kafka-admin: makes topics, users and ACLs of a Kafka cluster match a file.

Everything is compared first, so a run on a cluster that matches changes nothing and says so. A
password cannot be read back: whether a user's is the right one is found out by logging in.

A user who is no longer listed is disabled, not deleted: it gets a password that nobody knows, and
an iteration count by which it is recognised. Kafka up to 4.3 may lose all SCRAM users at a restart
when its metadata log contains a deletion (`ScramDelta.apply` drops the map it is still filling
when it meets a deleted user first), and then nobody can log in any more.
"""

from __future__ import annotations

import secrets
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from kafka.admin import (
    ACL,
    ACLFilter,
    ACLOperation,
    ACLPermissionType,
    ACLResourcePatternType,
    ConfigResource,
    ConfigResourceType,
    KafkaAdminClient,
    ResourcePattern,
    ResourcePatternFilter,
    ResourceType,
    ScramMechanism,
    UserScramCredentialUpsertion,
)
from kafka.errors import KafkaError

from prime_spark.config import (
    Attempts,
    Config,
    ConfigError,
    CredentialName,
    KafkaConfig,
    NonEmpty,
    Positive,
    PositiveSeconds,
    TopicName,
    answer,
    argument_parser,
    config_from_arguments,
    read_attempts,
    read_credential,
)
from prime_spark.kafka_admin.scram import can_log_in

_ITERATIONS = 8192
_DISABLED_ITERATIONS = 4099  # marks a disabled user; no other tool picks such a number
_LOGIN_SECONDS = 10.0
_INTERNAL_PREFIX = "__"  # __consumer_offsets and the like belong to Kafka


class TopicConfig(Config, frozen=True):
    """A topic. `configs` not named here are reset to the broker's defaults."""

    partitions: Positive
    replication_factor: Annotated[int, msgspec.Meta(ge=-1)] = -1  # -1: the broker's default
    configs: dict[NonEmpty, str] = msgspec.field(default_factory=dict)


class UserConfig(Config, frozen=True):
    """A SCRAM user and the credential that holds its password."""

    credential: CredentialName


class AclConfig(Config, frozen=True):
    """What a principal may do with a resource, from any host."""

    principal: Annotated[str, msgspec.Meta(pattern=r"^User:[^\s]+\Z")]
    resource_type: Literal["TOPIC", "GROUP", "CLUSTER", "TRANSACTIONAL_ID"]
    name: NonEmpty
    operations: Annotated[
        list[
            Literal[
                "ALL", "READ", "WRITE", "CREATE", "DELETE", "ALTER", "DESCRIBE", "CLUSTER_ACTION",
                "DESCRIBE_CONFIGS", "ALTER_CONFIGS", "IDEMPOTENT_WRITE",
            ]
        ],
        msgspec.Meta(min_length=1),
    ]  # fmt: skip
    pattern: Literal["LITERAL", "PREFIXED"] = "LITERAL"


class KafkaAdminConfig(KafkaConfig, frozen=True, kw_only=True):
    """Configuration of prime-spark-kafka-admin: how to log in, and what the cluster has to be."""

    topics: dict[TopicName, TopicConfig]
    users: dict[NonEmpty, UserConfig]
    acls: list[AclConfig]
    purge_topics: bool = False
    wait_seconds: PositiveSeconds = 60.0


class AdminError(Exception):
    """The cluster cannot be made to match; the message says why."""


class Change(NamedTuple):
    """A difference between the cluster and the file, and what removes it."""

    sentence: str
    apply: Callable[[], None]


class ClusterAdmin:
    """Compares a cluster with a configuration and removes the differences."""

    def __init__(self, config: KafkaAdminConfig, client: Any) -> None:
        self._config = config
        self._client = client
        self._mechanism = ScramMechanism[config.sasl_mechanism.replace("-", "_")]
        self._passwords = {
            name: read_credential(user.credential) for name, user in config.users.items()
        }

    def changes(self) -> list[Change]:
        """Return what differs, in the order in which it is to be changed."""
        return [*self._topic_changes(), *self._user_changes(), *self._acl_changes()]

    # -- topics -------------------------------------------------------------------------------

    def _topic_changes(self) -> Iterator[Change]:
        existing = {
            topic["name"]: len(topic["partitions"]) for topic in self._client.describe_topics()
        }
        for name, topic in sorted(self._config.topics.items()):
            if name not in existing:
                yield Change(
                    f"create topic {name} with {topic.partitions} partitions",
                    partial(self._create_topic, name, topic),
                )
                continue
            if existing[name] > topic.partitions:
                raise AdminError(
                    f"topic {name} has {existing[name]} partitions, {topic.partitions} are wanted: "
                    "Kafka cannot take partitions away; delete the topic or raise the number"
                )
            if existing[name] < topic.partitions:
                yield Change(
                    f"grow topic {name} from {existing[name]} to {topic.partitions} partitions",
                    partial(self._grow_topic, name, topic.partitions),
                )
            yield from self._config_changes(name, topic.configs)
        if self._config.purge_topics:
            for name in sorted(set(existing) - set(self._config.topics)):
                if not name.startswith(_INTERNAL_PREFIX):
                    yield Change(
                        f"delete topic {name}",
                        partial(self._client.delete_topics, [name]),
                    )

    def _create_topic(self, name: str, topic: TopicConfig) -> None:
        options = {
            "num_partitions": topic.partitions,
            "replication_factor": topic.replication_factor,
            "configs": topic.configs,
        }
        self._client.create_topics({name: options}, wait_for_metadata=True)

    def _grow_topic(self, name: str, partitions: int) -> None:
        self._client.create_partitions({name: partitions})

    def _config_changes(self, topic: str, wanted: dict[str, str]) -> Iterator[Change]:
        resource = ConfigResource(ConfigResourceType.TOPIC, topic)
        answer = self._client.describe_configs([resource], config_filter="all")["topic"][topic]
        own = {
            key: entry["value"]
            for key, entry in answer.items()
            if entry["config_source"] == "DYNAMIC_TOPIC_CONFIG"
        }
        if unknown := sorted(set(wanted) - set(answer)):
            raise AdminError(f"topic {topic}: Kafka knows no configuration {', '.join(unknown)}")
        different = {key: value for key, value in wanted.items() if own.get(key) != value}
        if different:
            pairs = ", ".join(f"{key}={value}" for key, value in sorted(different.items()))
            yield Change(
                f"configure topic {topic}: {pairs}",
                partial(self._alter_configs, topic, different),
            )
        if extra := sorted(set(own) - set(wanted)):
            yield Change(
                f"reset configuration of topic {topic}: {', '.join(extra)}",
                partial(self._reset_configs, topic, extra),
            )

    def _alter_configs(self, topic: str, configs: dict[str, str]) -> None:
        resource = ConfigResource(ConfigResourceType.TOPIC, topic, dict(configs))
        _require_ok(self._client.alter_configs([resource])["topic"][topic], topic)

    def _reset_configs(self, topic: str, keys: list[str]) -> None:
        resource = ConfigResource(ConfigResourceType.TOPIC, topic, list(keys))
        _require_ok(self._client.reset_configs([resource])["topic"][topic], topic)

    # -- users --------------------------------------------------------------------------------

    def _user_changes(self) -> Iterator[Change]:
        iterations = {
            name: {entry["mechanism"]: entry["iterations"] for entry in answer["credential_infos"]}
            for name, answer in self._client.describe_user_scram_credentials().items()
        }
        active = {
            name: {mechanism for mechanism, count in own.items() if count != _DISABLED_ITERATIONS}
            for name, own in iterations.items()
        }
        for name, password in sorted(self._passwords.items()):
            if self._mechanism not in active.get(name, set()):
                sentence = f"create user {name}"
            elif not self._can_log_in(name, password):
                sentence = f"change the password of user {name}"
            else:
                continue
            yield Change(sentence, partial(self.set_password, name, password))
        for name, mechanisms in sorted(active.items()):
            # Never the account this very run depends on.
            if mechanisms and name not in self._passwords and name != self._config.username:
                yield Change(f"disable user {name}", partial(self._disable_user, name, mechanisms))

    def _can_log_in(self, name: str, password: str) -> bool:
        return _log_in(self._config, name, password, time.monotonic() + _LOGIN_SECONDS)

    def set_password(self, name: str, password: str) -> None:
        """Set a user's password and wait until it counts."""
        self._alter_users(
            [UserScramCredentialUpsertion(name, self._mechanism, password, iterations=_ITERATIONS)]
        )
        # The broker learns of it a moment after the controller has accepted it.
        deadline = time.monotonic() + _LOGIN_SECONDS
        while not self._can_log_in(name, password):
            if time.monotonic() > deadline:
                raise AdminError(f"user {name} still cannot log in with the new password")
            time.sleep(0.1)

    def _disable_user(self, name: str, mechanisms: set[ScramMechanism]) -> None:
        self._alter_users(
            [
                UserScramCredentialUpsertion(
                    name, mechanism, secrets.token_urlsafe(48), iterations=_DISABLED_ITERATIONS
                )
                for mechanism in sorted(mechanisms)
            ]
        )

    def _alter_users(self, alterations: list[Any]) -> None:
        for name, error in self._client.alter_user_scram_credentials(alterations).items():
            if error is not None:
                raise AdminError(f"user {name}: {error}")

    # -- ACLs ---------------------------------------------------------------------------------

    def _acl_changes(self) -> Iterator[Change]:
        existing, _ = self._client.describe_acls(_any_acl())
        wanted = {acl for entry in self._config.acls for acl in _acls(entry)}
        missing = sorted(wanted - set(existing), key=_acl_sentence)
        extra = sorted(set(existing) - wanted, key=_acl_sentence)
        # Add before removing: a right that only changes its form is never gone in between.
        for acl in missing:
            yield Change(f"allow {_acl_sentence(acl)}", partial(self._create_acl, acl))
        for acl in extra:
            yield Change(f"take away {_acl_sentence(acl)}", partial(self._delete_acl, acl))

    def _create_acl(self, acl: ACL) -> None:
        for error in self._client.create_acls([acl])["failed"]:
            raise AdminError(f"ACL {_acl_sentence(acl)}: {error.__name__}")

    def _delete_acl(self, acl: ACL) -> None:
        pattern = acl.resource_pattern
        exact = ACLFilter(
            acl.principal,
            acl.host,
            acl.operation,
            acl.permission_type,
            ResourcePatternFilter(
                pattern.resource_type, pattern.resource_name, pattern.pattern_type
            ),
        )
        for _, _, error in self._client.delete_acls([exact]):
            if error.errno != 0:
                raise AdminError(f"ACL {_acl_sentence(acl)}: {error.__name__}")


@contextmanager
def connected(config: KafkaAdminConfig, password: str | None = None) -> Iterator[Any]:
    """Log in as the administrator, waiting for a broker that is still starting."""
    password = read_credential(config.credential) if password is None else password
    deadline = time.monotonic() + config.wait_seconds
    if not _log_in(config, config.username, password, deadline):
        raise AdminError(f"Kafka refuses the login of {config.username}")
    client = KafkaAdminClient(
        bootstrap_servers=config.bootstrap_servers,
        client_id="prime-spark-kafka-admin",
        security_protocol=config.security_protocol,
        sasl_mechanism=config.sasl_mechanism,
        sasl_plain_username=config.username,
        sasl_plain_password=password,
        bootstrap_timeout_ms=int(max(deadline - time.monotonic(), 5.0) * 1000),
    )
    try:
        yield client
    finally:
        client.close()


def _log_in(config: KafkaConfig, username: str, password: str, deadline: float) -> bool:
    """Return whether the password is right, asking until some broker answers."""
    while True:
        for server in config.bootstrap_servers:
            try:
                return can_log_in(server, username, password, config.sasl_mechanism, _LOGIN_SECONDS)
            except OSError as error:
                last = error
        if time.monotonic() > deadline:
            servers = ", ".join(config.bootstrap_servers)
            raise AdminError(f"no answer from {servers}: {last}")
        time.sleep(0.25)


def apply(config: KafkaAdminConfig, *, check: bool) -> list[str]:
    """Make the cluster match `config`; return a sentence per change. With `check` only look."""
    with connected(config) as client:
        changes = ClusterAdmin(config, client).changes()
        for change in changes if not check else []:
            change.apply()
    return [change.sentence for change in changes]


def rekey(config: KafkaAdminConfig, previous: str) -> list[str]:
    """Give the administrator the password of the credential, logging in with the previous one.

    `apply` logs in with that password itself, so it cannot be what changes it.
    """
    user, password = config.username, read_credential(config.credential)
    if _log_in(config, user, password, time.monotonic() + config.wait_seconds):
        return []
    try:
        with connected(config, previous) as client:
            ClusterAdmin(config, client).set_password(user, password)
    except AdminError as error:
        raise AdminError(f"{error}, with the new password and with the previous one") from None
    return [f"change the password of user {user}"]


def try_logins(config: KafkaAdminConfig, attempts: Attempts) -> dict[str, list[bool]]:
    """Return for each user's passwords whether Kafka accepts them."""
    deadline = time.monotonic() + config.wait_seconds
    return {
        user: [_log_in(config, user, password, deadline) for password in passwords]
        for user, passwords in attempts.items()
    }


def _acls(entry: AclConfig) -> Iterator[ACL]:
    pattern = ResourcePattern(
        ResourceType[entry.resource_type], entry.name, ACLResourcePatternType[entry.pattern]
    )
    for operation in entry.operations:
        yield ACL(entry.principal, "*", ACLOperation[operation], ACLPermissionType.ALLOW, pattern)


def _any_acl() -> ACLFilter:
    pattern = ResourcePatternFilter(ResourceType.ANY, None, ACLResourcePatternType.ANY)
    return ACLFilter(None, None, ACLOperation.ANY, ACLPermissionType.ANY, pattern)


def _acl_sentence(acl: ACL) -> str:
    pattern = acl.resource_pattern
    prefixed = " prefixed" if pattern.pattern_type is ACLResourcePatternType.PREFIXED else ""
    verb = "" if acl.permission_type is ACLPermissionType.ALLOW else " (deny)"
    host = "" if acl.host == "*" else f" from {acl.host}"
    return (
        f"{acl.principal} {acl.operation.name} on {pattern.resource_type.name}{prefixed} "
        f"{pattern.resource_name}{host}{verb}"
    )


def _require_ok(result: str, topic: str) -> None:
    if result != "OK":
        raise AdminError(f"topic {topic}: {result}")


def main(argv: Sequence[str] | None = None) -> int:
    """Console entry point."""
    parser = argument_parser(
        "prime-spark-kafka-admin",
        "Make topics, users and ACLs of a Kafka cluster match the configuration (apply); give the "
        "administrator a new password, with the previous one on standard input (rekey); try the "
        'passwords on standard input, {"user": ["password"]} (login).',
    )
    parser.add_argument("command", choices=["apply", "rekey", "login"], nargs="?", default="apply")
    parser.add_argument(
        "--check", action="store_true", help="say what would change, change nothing"
    )
    arguments = parser.parse_args(argv)
    config = config_from_arguments(arguments, KafkaAdminConfig)
    try:
        if arguments.command == "login":
            return answer({"accepted": try_logins(config, read_attempts(sys.stdin.buffer))})
        if arguments.command == "rekey":
            changes = rekey(config, sys.stdin.readline().rstrip("\r\n"))
        else:
            changes = apply(config, check=arguments.check)
    except (AdminError, ConfigError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except (KafkaError, OSError) as error:
        sys.stderr.write(f"error: Kafka: {type(error).__name__}: {error}\n")
        return 1
    return answer({"changed": bool(changes), "changes": changes})


if __name__ == "__main__":
    sys.exit(main())

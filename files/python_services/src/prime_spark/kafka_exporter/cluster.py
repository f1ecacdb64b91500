"""Asks a cluster for its topics, offsets and groups. Blocking; called in a thread."""

from __future__ import annotations

import dataclasses
from typing import Any

from kafka import TopicPartition
from kafka.admin import KafkaAdminClient, OffsetSpec

from prime_spark.config import KafkaConfig, read_credential

_INTERNAL_PREFIX = "__"  # __consumer_offsets and the like belong to Kafka


@dataclasses.dataclass(frozen=True)
class Partition:
    """A partition of a topic; offsets count messages, `newest` is the next one to be written."""

    topic: str
    partition: int
    leader: int
    replicas: int
    in_sync: int
    oldest: int
    newest: int


@dataclasses.dataclass(frozen=True)
class Committed:
    """How far a group has read a partition, and how many messages it has not."""

    group: str
    topic: str
    partition: int
    offset: int
    lag: int


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """A cluster at one moment. `members` has every group, also one that has nobody left."""

    brokers: dict[int, str]
    partitions: list[Partition]
    members: dict[str, int]
    committed: list[Committed]


def connect(config: KafkaConfig, timeout: float) -> Any:
    """Log in; KafkaError or OSError when no broker answers in `timeout` seconds."""
    return KafkaAdminClient(
        bootstrap_servers=config.bootstrap_servers,
        client_id="prime-spark-kafka-exporter",
        security_protocol=config.security_protocol,
        sasl_mechanism=config.sasl_mechanism,
        sasl_plain_username=config.username,
        sasl_plain_password=read_credential(config.credential),
        bootstrap_timeout_ms=int(timeout * 1000),
        request_timeout_ms=int(timeout * 1000),
    )


def look(client: Any) -> Snapshot:
    """Return what the cluster says now; KafkaError when it says nothing."""
    brokers = {
        int(broker["broker_id"]): f"{broker['host']}:{broker['port']}"
        for broker in client.describe_cluster()["brokers"]
    }
    members = dict.fromkeys((group["group_id"] for group in client.list_groups()), 0)
    commits = client.list_group_offsets(list(members)) if members else {}
    if members:
        for name, group in client.describe_groups(list(members)).items():
            members[name] = len(group.get("members") or [])
    # The ends come last: a commit read after them could be ahead of them.
    partitions = _partitions(client)
    newest = {(p.topic, p.partition): p.newest for p in partitions}
    committed = [
        Committed(group, tp.topic, tp.partition, entry.offset, max(0, end - entry.offset))
        for group, offsets in sorted(commits.items())
        for tp, entry in sorted(offsets.items())
        # A partition without a commit has -1; a topic that was deleted has no end.
        if entry.offset >= 0 and (end := newest.get((tp.topic, tp.partition))) is not None
    ]
    return Snapshot(brokers, partitions, members, committed)


def _partitions(client: Any) -> list[Partition]:
    described = [
        (topic["name"], entry)
        for topic in client.describe_topics()
        if not topic["name"].startswith(_INTERNAL_PREFIX)
        for entry in topic["partitions"]
    ]
    places = {(name, e["partition_index"]): e for name, e in described if e["leader_id"] >= 0}
    wanted = [TopicPartition(*place) for place in sorted(places)]
    if not wanted:
        return []
    oldest = client.list_partition_offsets(dict.fromkeys(wanted, OffsetSpec.EARLIEST))
    newest = client.list_partition_offsets(dict.fromkeys(wanted, OffsetSpec.LATEST))
    return [
        Partition(
            topic=tp.topic,
            partition=tp.partition,
            leader=places[tp]["leader_id"],
            replicas=len(places[tp]["replica_nodes"]),
            in_sync=len(places[tp]["isr_nodes"]),
            oldest=oldest[tp].offset,
            newest=newest[tp].offset,
        )
        for tp in wanted
    ]

"""A snapshot of the cluster in Prometheus' terms.

Names and labels are those of https://github.com/danielqsj/kafka_exporter, which rules and
dashboards of others know. Unlike there, a partition without a commit has no series instead of -1,
and no lag is negative.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from prime_spark.kafka_exporter.cluster import Committed, Partition, Snapshot

Families = Iterator[GaugeMetricFamily]


class ClusterCollector(Collector):
    """Exports `snapshot`; while it is None (Kafka is away), `kafka_brokers` 0 and nothing else.

    Old values would look like a cluster that stands still.
    """

    def __init__(self) -> None:
        self.snapshot: Snapshot | None = None

    def collect(self) -> Families:
        """Return the metrics of the present snapshot."""
        seen = self.snapshot
        brokers = GaugeMetricFamily("kafka_brokers", "Brokers that the cluster has")
        brokers.add_metric([], len(seen.brokers) if seen else 0)
        yield brokers
        if seen is None:
            return
        info = GaugeMetricFamily(
            "kafka_broker_info", "Address of a broker", labels=["id", "address"]
        )
        for number, address in sorted(seen.brokers.items()):
            info.add_metric([str(number), address], 1)
        yield info
        yield from _topics(seen.partitions)
        yield from _groups(seen)


def _topics(partitions: list[Partition]) -> Families:
    counts: dict[str, int] = defaultdict(int)
    for entry in partitions:
        counts[entry.topic] += 1
    family = GaugeMetricFamily("kafka_topic_partitions", "Partitions of a topic", labels=["topic"])
    for topic, count in sorted(counts.items()):
        family.add_metric([topic], count)
    yield family
    for name, text, value in (
        ("current_offset", "Offset that the next message gets", lambda p: p.newest),
        ("oldest_offset", "Offset of the oldest message", lambda p: p.oldest),
        ("leader", "Id of the leader", lambda p: p.leader),
        ("replicas", "Replicas", lambda p: p.replicas),
        ("in_sync_replica", "Replicas in sync", lambda p: p.in_sync),
        (
            "under_replicated_partition",
            "1 while replicas are out of sync",
            lambda p: int(p.in_sync < p.replicas),
        ),
    ):
        family = GaugeMetricFamily(
            f"kafka_topic_partition_{name}", text, labels=["topic", "partition"]
        )
        for entry in partitions:
            family.add_metric([entry.topic, str(entry.partition)], value(entry))
        yield family


def _groups(seen: Snapshot) -> Families:
    members = GaugeMetricFamily(
        "kafka_consumergroup_members", "Members of a group", labels=["consumergroup"]
    )
    for group, count in sorted(seen.members.items()):
        members.add_metric([group], count)
    yield members
    for name, text, value in (
        ("current_offset", "Offset that a group has committed", lambda c: c.offset),
        ("lag", "Messages that a group has not committed yet", lambda c: c.lag),
    ):
        yield from _group_values(seen.committed, f"kafka_consumergroup_{name}", text, value)


def _group_values(
    committed: list[Committed], name: str, text: str, value: Callable[[Committed], int]
) -> Families:
    sums: dict[tuple[str, str], int] = defaultdict(int)
    family = GaugeMetricFamily(name, text, labels=["consumergroup", "topic", "partition"])
    for entry in committed:
        family.add_metric([entry.group, entry.topic, str(entry.partition)], value(entry))
        sums[entry.group, entry.topic] += value(entry)
    yield family
    total = GaugeMetricFamily(
        f"{name}_sum", f"{text}, all partitions", labels=["consumergroup", "topic"]
    )
    for (group, topic), number in sorted(sums.items()):
        total.add_metric([group, topic], number)
    yield total

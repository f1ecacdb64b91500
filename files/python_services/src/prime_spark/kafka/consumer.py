"""A Kafka consumer whose offsets are committed by hand and whose every call has a deadline."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import structlog
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.errors import CommitFailedError, IllegalStateError, KafkaError

from prime_spark.config import KafkaConfig
from prime_spark.kafka import records
from prime_spark.kafka.clients import connection_options, describe
from prime_spark.runtime.service import close_within, within

records.install()
_log = structlog.get_logger(__name__)

# Joining may have to wait until the session of a member that died has expired.
_START_SECONDS = 60.0
_COMMIT_SECONDS = 10.0
_PROBE_SECONDS = 5.0
_STOP_SECONDS = 5.0
_REQUEST_MS = 15_000


class Partition(NamedTuple):
    """A partition of a topic."""

    topic: str
    number: int


class Consumer:
    """Reads topics as a member of a group. After an error other than of `commit`, `discard`."""

    def __init__(
        self,
        config: KafkaConfig,
        topics: Sequence[str],
        *,
        group_id: str,
        group_instance_id: str | None,
        session_timeout_ms: int,
    ) -> None:
        self._config = config
        self._topics = tuple(topics)
        self._group_id = group_id
        self._group_instance_id = group_instance_id
        self._session_timeout_ms = session_timeout_ms
        self._consumer: Any = None
        self._joined = False

    @property
    def joined(self) -> bool:
        """Whether this is a member of its group, as far as is known."""
        return self._joined

    async def connect(self) -> None:
        """Connect and join the group, if not done."""
        if self._joined:
            return
        self._consumer = AIOKafkaConsumer(
            *self._topics,
            **connection_options(self._config, self._group_id),
            group_id=self._group_id,
            group_instance_id=self._group_instance_id,
            enable_auto_commit=False,
            # What its sender has taken back was never sent.
            isolation_level="read_committed",
            auto_offset_reset="earliest",
            session_timeout_ms=self._session_timeout_ms,
            heartbeat_interval_ms=self._session_timeout_ms // 5,
            request_timeout_ms=_REQUEST_MS,
        )
        await within(_START_SECONDS, self._consumer.start())
        self._joined = True

    async def poll(self, wait_seconds: float, max_records: int) -> list[ConsumerRecord]:
        """Return records as soon as there are some, or none after `wait_seconds`."""
        polling = self._consumer.getmany(
            timeout_ms=int(wait_seconds * 1000), max_records=max_records
        )
        # While the group rebalances, getmany ignores its timeout.
        batches = await within(wait_seconds + _START_SECONDS, polling)
        return [record for batch in batches.values() for record in batch]

    async def hold(self, seconds: float) -> list[ConsumerRecord]:
        """Wait without fetching, but stay in the group.

        Returns records of partitions that a rebalance brought in the meantime, rarely any.
        """
        self._consumer.pause(*self._consumer.assignment())
        records = await self.poll(seconds, 1000)
        if not records:  # something has arrived at once if there are any: do not spin
            return []
        await asyncio.sleep(seconds)
        return records

    def resume(self) -> None:
        """Fetch again from all partitions."""
        if paused := self._consumer.paused():
            self._consumer.resume(*paused)

    async def commit(self, offsets: Mapping[Partition, int]) -> bool:
        """Commit the offsets to read next; return whether Kafka has them now.

        Partitions that a rebalance took away are left out: their new owner reads again what we
        have stored, and the keys of the tables recognise it.
        """
        assigned = self._consumer.assignment()
        ours = {
            TopicPartition(partition.topic, partition.number): offset
            for partition, offset in offsets.items()
            if TopicPartition(partition.topic, partition.number) in assigned
        }
        if not ours:
            return True
        try:
            await within(_COMMIT_SECONDS, self._consumer.commit(ours))
        except (CommitFailedError, IllegalStateError) as error:
            _log.info("partitions moved before the commit", error=describe(error))
            return True
        except (KafkaError, OSError, TimeoutError) as error:
            _log.warning("commit failed, will try again", error=describe(error))
            return False
        return True

    async def lag(self) -> dict[Partition, int]:
        """Ask Kafka how many records are waiting in each of our partitions."""
        return await within(_PROBE_SECONDS, self._lag(self._consumer))

    async def _lag(self, consumer: Any) -> dict[Partition, int]:
        lags: dict[Partition, int] = {}
        if not (assigned := consumer.assignment()):
            return lags
        for partition, end in (await consumer.end_offsets(assigned)).items():
            with contextlib.suppress(IllegalStateError):  # just taken away
                position = await consumer.position(partition)
                lags[Partition(partition.topic, partition.partition)] = max(0, end - position)
        return lags

    async def discard(self) -> None:
        """Leave the group and let go of the connection; uncommitted records are read again."""
        consumer, self._consumer, self._joined = self._consumer, None, False
        if consumer is not None:
            await close_within(_STOP_SECONDS, consumer.stop())

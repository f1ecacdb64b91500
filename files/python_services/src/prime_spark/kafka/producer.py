"""A Kafka producer that can always be given up.

aiokafka's producer fails to start while Kafka is down, and its `stop` may then wait for ever. So
every call has a deadline, and after an error the producer is thrown away and built again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from aiokafka import AIOKafkaProducer
from aiokafka.errors import (
    InvalidTopicError,
    KafkaError,
    MessageSizeTooLargeError,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
)
from aiokafka.partitioner import DefaultPartitioner

from prime_spark.config import KafkaConfig
from prime_spark.kafka.clients import connection_options
from prime_spark.runtime.service import close_within, within

Header = tuple[str, bytes]

# What a Kafka operation raises while the broker is away, restarting or refusing.
KAFKA_ERRORS = (KafkaError, OSError, TimeoutError)

# Kafka is well, but there is no such topic, or not for us.
TOPIC_REFUSALS = (InvalidTopicError, TopicAuthorizationFailedError, UnknownTopicOrPartitionError)
# Kafka will not take this record; sending it again cannot help.
REFUSALS = (*TOPIC_REFUSALS, MessageSizeTooLargeError)

_START_SECONDS = 15.0
_SEND_SECONDS = 15.0
_PROBE_SECONDS = 5.0
_STOP_SECONDS = 3.0
_MAX_PLACES = 10_000


@dataclass(frozen=True, slots=True)
class Record:
    """One record to send; records with the same key stay in order."""

    topic: str
    value: bytes
    key: bytes


@dataclass(frozen=True, slots=True)
class _Batch:
    """Records on their way to one partition; `numbers` are their places in the round."""

    builder: Any
    numbers: list[int]

    def add(self, number: int, record: Record) -> bool:
        """Append a record; return False when the batch has no room for it."""
        if self.builder.append(key=record.key, value=record.value, timestamp=None) is None:
            return False
        self.numbers.append(number)
        return True


class Producer:
    """An idempotent producer with acks=all. After any error of a method, call `discard`."""

    def __init__(
        self,
        config: KafkaConfig,
        client_id: str,
        *,
        max_batch_bytes: int = 16 * 1024,
        max_request_bytes: int = 1024 * 1024,
        compression: Literal["gzip"] | None = "gzip",
    ) -> None:
        self._config = config
        self._client_id = client_id
        self._max_batch_bytes = max_batch_bytes
        self._max_request_bytes = max_request_bytes
        self._compression = compression
        self._producer: Any = None
        self._partitioner = DefaultPartitioner()
        # Working a partition out is dear, and the keys are few: routes, models, devices.
        self._places: dict[tuple[str, bytes, int], int] = {}

    async def connect(self) -> None:
        """Connect if not connected; raises one of KAFKA_ERRORS."""
        if self._producer is not None:
            return
        self._producer = AIOKafkaProducer(
            **connection_options(self._config, self._client_id),
            acks="all",
            enable_idempotence=True,
            compression_type=self._compression,
            request_timeout_ms=10_000,
            max_batch_size=self._max_batch_bytes,
            max_request_size=self._max_request_bytes,
        )
        await within(_START_SECONDS, self._producer.start())

    async def send(
        self, topic: str, value: bytes | None, key: bytes | None, headers: Sequence[Header] = ()
    ) -> None:
        """Send one record and wait until Kafka has it."""
        await self.connect()
        sending = self._producer.send_and_wait(topic, value, key=key, headers=list(headers))
        await within(_SEND_SECONDS, sending)

    async def send_all(self, records: Sequence[Record]) -> list[BaseException | None]:
        """Send `records`; return for each None once Kafka has it, else why it may not have it.

        An error in REFUSALS is final. After any other call `discard` and send the record again.
        """
        await self.connect()
        sending: dict[int, asyncio.Future[Any] | BaseException] = {}
        why: BaseException | None = None
        try:
            await within(_SEND_SECONDS, self._send_each(records, sending))
        except KAFKA_ERRORS as error:
            why = error
        return [_result(sending.get(number), why) for number in range(len(records))]

    async def _send_each(
        self, records: Sequence[Record], sending: dict[int, asyncio.Future[Any] | BaseException]
    ) -> None:
        """Hand over all records, then wait; `sending` gets a future or a refusal for each.

        In one batch for each partition: handed over one by one, the client would spend several
        times as much on each record, on the event loop that answers requests.
        """
        batches: dict[tuple[str, int], _Batch] = {}
        refused: dict[str, BaseException] = {}  # asking again for a missing topic takes seconds
        topics: dict[str, list[int]] = {}
        for number, record in enumerate(records):
            if record.topic not in topics and record.topic not in refused:
                try:
                    topics[record.topic] = sorted(await self._producer.partitions_for(record.topic))
                except REFUSALS as error:
                    # The client says "unknown topic" as well when it could ask no broker.
                    if isinstance(error, UnknownTopicOrPartitionError):
                        await self.probe()
                    refused[record.topic] = error
            if record.topic in refused:
                sending[number] = refused[record.topic]
                continue
            place = record.topic, self._partition(record, topics[record.topic])
            if place in batches and not batches[place].add(number, record):
                await self._hand_over(place, batches.pop(place), sending)
            if place not in batches:
                batches[place] = _Batch(self._producer.create_batch(), [])
                if not batches[place].add(number, record):
                    sending[number] = MessageSizeTooLargeError(f"{len(record.value)} bytes")
        for place, batch in batches.items():
            await self._hand_over(place, batch, sending)
        if futures := {item for item in sending.values() if isinstance(item, asyncio.Future)}:
            await asyncio.wait(futures)

    async def _hand_over(
        self,
        place: tuple[str, int],
        batch: _Batch,
        sending: dict[int, asyncio.Future[Any] | BaseException],
    ) -> None:
        topic, partition = place
        try:
            future: asyncio.Future[Any] = await self._producer.send_batch(
                batch.builder, topic, partition=partition
            )
        except REFUSALS as error:
            sending.update(dict.fromkeys(batch.numbers, error))
        else:
            future.add_done_callback(_take_note)
            sending.update(dict.fromkeys(batch.numbers, future))

    def _partition(self, record: Record, partitions: list[int]) -> int:
        """Return where Kafka's own clients would put the record: the same for each key."""
        known = record.topic, record.key, len(partitions)
        partition = self._places.get(known)
        if partition is None:
            if len(self._places) >= _MAX_PLACES:
                self._places.clear()
            partition = self._places[known] = self._partitioner(record.key, partitions, partitions)
        return partition

    async def probe(self) -> None:
        """Raise one of KAFKA_ERRORS when the broker does not answer."""
        await self.connect()
        await within(_PROBE_SECONDS, self._producer.client.fetch_all_metadata())

    async def send_ordered(self, topic: str, key: bytes, values: Sequence[bytes]) -> int:
        """Send a leading part of `values` as one Kafka batch; return how many Kafka now has.

        One batch is stored wholly or not at all, so an error never leaves a gap in the order.
        """
        await self.connect()
        return await within(_SEND_SECONDS, self._send_batch(topic, key, values))

    async def _send_batch(self, topic: str, key: bytes, values: Sequence[bytes]) -> int:
        batch = self._producer.create_batch()
        count = 0
        for value in values:
            if batch.append(key=key, value=value, timestamp=None) is None:
                break
            count += 1
        if count == 0:
            raise ValueError(f"a record of {len(values[0])} bytes is larger than a batch")
        partitions = sorted(await self._producer.partitions_for(topic))
        partition = self._partitioner(key, partitions, partitions)
        delivered = await self._producer.send_batch(batch, topic, partition=partition)
        await delivered
        return count

    async def discard(self) -> None:
        """Let go of the connection; what was not acknowledged has to be sent again."""
        producer, self._producer = self._producer, None
        if producer is not None:
            await close_within(_STOP_SECONDS, producer.stop())


def _result(
    item: asyncio.Future[Any] | BaseException | None, error: BaseException | None
) -> BaseException | None:
    """Return why a record may not have arrived: its own error, else the round's."""
    if isinstance(item, BaseException):
        return item
    if item is None or not item.done() or item.cancelled():
        return error or TimeoutError("not acknowledged")
    return item.exception()


def _take_note(future: asyncio.Future[Any]) -> None:
    """Mark an error as seen; a round that was given up does not look any more."""
    if not future.cancelled():
        future.exception()

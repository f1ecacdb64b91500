"""One batch on its way from Kafka to the database: what of it is decided and what is not."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from aiokafka import ConsumerRecord

from prime_spark.events import Event, EventError, check_not_future, decode
from prime_spark.streaming.consumer import Partition
from prime_spark.streaming.dead_letters import DeadLetter
from prime_spark.timeseries.connection import (
    DATABASE_ERRORS,
    describe_database_error,
    is_data_error,
)
from prime_spark.timeseries.writer import Writer, Written


@dataclass(frozen=True)
class Message:
    """A Kafka record and the event in it."""

    record: ConsumerRecord
    event: Event


@dataclass
class Batch:
    """Messages that were read and not yet committed.

    `parts` are groups of messages still to be stored, each in one transaction; `dead` are
    messages that were refused and not yet put into the dead-letter topic. Both empty: commit
    `offsets`.
    """

    parts: deque[list[Message]] = field(default_factory=deque)
    dead: deque[DeadLetter] = field(default_factory=deque)
    offsets: dict[Partition, int] = field(default_factory=dict)

    def add(
        self,
        records: Sequence[ConsumerRecord],
        event_types: Mapping[str, type[Event]],
        now: datetime | None = None,
    ) -> None:
        """Decode `records` and add them."""
        now = now or datetime.now(UTC)
        messages: list[Message] = []
        for record in records:
            try:
                event = decode(record.value, event_types[record.topic])
                check_not_future(event, now)
            except EventError as error:
                self.dead.append(DeadLetter(record, str(error)))
            else:
                messages.append(Message(record, event))
            partition = Partition(record.topic, record.partition)
            self.offsets[partition] = max(self.offsets.get(partition, 0), record.offset + 1)
        if messages:
            self.parts.append(messages)

    async def store(self, writer: Writer) -> Written:
        """Store the first part; raises a database error that is not the data's fault.

        A part with bad data is halved until the bad message stands alone; that one becomes a
        dead letter and costs no other.
        """
        part = self.parts[0]
        try:
            written = await writer.write([message.event for message in part])
        except (*DATABASE_ERRORS, OverflowError, TypeError, ValueError) as error:
            if not is_data_error(error):
                raise
            self.parts.popleft()
            if len(part) == 1:
                self.dead.append(DeadLetter(part[0].record, describe_database_error(error)))
            else:
                middle = len(part) // 2
                self.parts.extendleft((part[middle:], part[:middle]))
            return Written()
        self.parts.popleft()
        return written

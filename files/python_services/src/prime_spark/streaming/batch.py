"""One batch on its way from Kafka to the database: what of it is decided and what is not."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from aiokafka import ConsumerRecord

from prime_spark.events import Event, check_not_future, decode
from prime_spark.streaming.consumer import Partition
from prime_spark.streaming.dead_letters import DeadLetter
from prime_spark.timeseries.connection import (
    DATABASE_ERRORS,
    describe_database_error,
    is_data_error,
)
from prime_spark.timeseries.rows import Rows, encode_rows
from prime_spark.timeseries.writer import Writer, Written

Message = tuple[ConsumerRecord, Rows]


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
    records: int = 0
    bytes: int = 0
    since: float = 0.0  # when the first record was added, on the monotonic clock

    def add(
        self,
        records: Sequence[ConsumerRecord],
        event_types: Mapping[str, type[Event]],
        now: datetime | None = None,
    ) -> None:
        """Decode `records` and add them to what is to be stored in one transaction."""
        now = now or datetime.now(UTC)
        messages: list[Message] = []
        offsets: dict[tuple[str, int], int] = {}
        for record in records:
            try:
                event = decode(record.value, event_types[record.topic])
                check_not_future(event, now)
                messages.append((record, encode_rows(event)))
            except ValueError as error:  # EventError included
                self.dead.append(DeadLetter(record, str(error)))
            self.bytes += len(record.value or b"")
            place = record.topic, record.partition
            offsets[place] = max(offsets.get(place, 0), record.offset + 1)
        if records and not self.records:
            self.since = time.monotonic()
        self.records += len(records)
        for (topic, number), offset in offsets.items():
            partition = Partition(topic, number)
            self.offsets[partition] = max(self.offsets.get(partition, 0), offset)
        if messages and self.parts:
            self.parts[-1] += messages
        elif messages:
            self.parts.append(messages)

    async def store(self, writer: Writer) -> Written:
        """Store the first part; raises a database error that is not the data's fault.

        A part with bad data is halved until the bad message stands alone; that one becomes a
        dead letter and costs no other.
        """
        part = self.parts[0]
        try:
            written = await writer.write([rows for _, rows in part])
        except (*DATABASE_ERRORS, OverflowError, TypeError, ValueError) as error:
            if not is_data_error(error):
                raise
            self.parts.popleft()
            if len(part) == 1:
                self.dead.append(DeadLetter(part[0][0], describe_database_error(error)))
            else:
                middle = len(part) // 2
                self.parts.extendleft((part[middle:], part[:middle]))
            return Written()
        self.parts.popleft()
        return written

"""One batch on its way from Kafka to the database: what of it is decided and what is not."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from aiokafka import ConsumerRecord

from prime_spark.events import Event, check_not_ancient, check_not_future, decode
from prime_spark.ingest.dead_letters import DeadLetter
from prime_spark.kafka.consumer import Partition
from prime_spark.kafka.records import check_read
from prime_spark.timeseries.connection import (
    DATABASE_ERRORS,
    describe_database_error,
    is_data_error,
    is_server_condition,
)
from prime_spark.timeseries.rows import Rows, encode_rows
from prime_spark.timeseries.writer import Writer, Written

Message = tuple[ConsumerRecord, Rows]

# Each day of a table is a chunk at most, and a transaction needs about ten locks for one: few of
# the thousands that a server has for all its transactions together.
_MAX_DAYS = 32
# After so many failures in spite of a database that works, a part is to blame.
_MAX_FAILURES = 3


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
    failures: int = 0  # of the first part, with a database that works
    suspect: bool = False  # something in this batch is to blame

    def add(
        self,
        records: Sequence[ConsumerRecord],
        event_types: Mapping[str, type[Event]],
        max_age: timedelta,
        now: datetime | None = None,
    ) -> None:
        """Decode `records` and add them to what is to be stored in one transaction."""
        now = now or datetime.now(UTC)
        messages: list[Message] = []
        offsets: dict[tuple[str, int], int] = {}
        for record in records:
            try:
                check_read(record.value)
                event = decode(record.value, event_types[record.topic])
                check_not_future(event, now)
                check_not_ancient(event, now, max_age)
                messages.append((record, encode_rows(event)))
            except ValueError as error:  # EventError included
                self.dead.append(DeadLetter(record, str(error)))
            except Exception as error:  # noqa: BLE001 (no message may end this process)
                self.dead.append(DeadLetter(record, f"{type(error).__name__}: {error}"))
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
        self._limit_days()
        part = self.parts[0]
        try:
            written = await writer.write([rows for _, rows in part])
        except (*DATABASE_ERRORS, OverflowError, TypeError, ValueError) as error:
            if not is_data_error(error):
                raise
            self._divide(describe_database_error(error))
            return Written()
        self.parts.popleft()
        self.failures = 0
        return written

    def blame(self, error: BaseException) -> bool:
        """Take note of a failure though the database works; return whether to go on at once.

        A part that failed repeatedly holds a message that makes the server fail, however that may
        be: it is divided until that message stands alone.
        """
        if not self.parts or is_server_condition(error):
            return False
        self.failures += 1
        alone = len(self.parts[0]) == 1
        if self.failures < _MAX_FAILURES and (alone or not self.suspect):
            return False
        self.suspect = True
        self._divide(f"{describe_database_error(error)} (repeatedly, alone)")
        return True

    def _divide(self, reason: str) -> None:
        """Halve the first part; a single message becomes a dead letter."""
        part = self.parts.popleft()
        self.failures = 0
        if len(part) == 1:
            self.dead.append(DeadLetter(part[0][0], reason))
        else:
            middle = len(part) // 2
            self.parts.extendleft((part[middle:], part[:middle]))

    def _limit_days(self) -> None:
        """Divide the first part so that each piece is of few days."""
        part = self.parts[0]
        days = sorted({rows.day for _, rows in part})
        if len(days) <= _MAX_DAYS:
            return
        pieces: list[list[Message]] = [[] for _ in range(0, len(days), _MAX_DAYS)]
        piece_of = {day: pieces[number // _MAX_DAYS] for number, day in enumerate(days)}
        for message in part:
            piece_of[message[1].day].append(message)
        self.parts.popleft()
        self.parts.extendleft(reversed(pieces))

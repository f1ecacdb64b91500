"""Messages that cannot be stored, kept with their original bytes and the reason."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import structlog
from aiokafka import ConsumerRecord
from aiokafka.errors import MessageSizeTooLargeError

from prime_spark.kafka.producer import KAFKA_ERRORS, Header, Producer

_log = structlog.get_logger(__name__)

_MAX_REASON_CHARS = 1000
_TRUNCATED_BYTES = 256 * 1024


@dataclass(frozen=True)
class DeadLetter:
    """A message of `topic` that was refused, and why."""

    record: ConsumerRecord
    reason: str

    def headers(self) -> list[Header]:
        """Return where the message came from and why it is here."""
        return [
            ("topic", self.record.topic.encode()),
            ("partition", str(self.record.partition).encode()),
            ("offset", str(self.record.offset).encode()),
            ("timestamp", str(self.record.timestamp).encode()),
            ("reason", self.reason[:_MAX_REASON_CHARS].encode(errors="backslashreplace")),
        ]


class DeadLetterQueue:
    """Writes dead letters and waits until Kafka has them.

    At least once: after a crash a letter may be there twice, with equal topic, partition and
    offset headers.
    """

    def __init__(self, producer: Producer, topic: str) -> None:
        self._producer = producer
        self._topic = topic

    async def put_all(self, letters: Sequence[DeadLetter]) -> list[BaseException | None]:
        """Store `letters`; return for each None, or why it is not known to be stored."""
        try:
            await self._producer.connect()  # once, not in each of them
        except KAFKA_ERRORS as error:
            return [error] * len(letters)
        outcomes = await asyncio.gather(*map(self.put, letters), return_exceptions=True)
        for outcome in outcomes:
            if outcome is not None and not isinstance(outcome, KAFKA_ERRORS):
                raise outcome
        return outcomes

    async def put(self, letter: DeadLetter) -> None:
        """Store `letter`; raises one of KAFKA_ERRORS when it is not known to be stored."""
        record = letter.record
        _log.warning(
            "dead letter",
            topic=record.topic,
            partition=record.partition,
            offset=record.offset,
            reason=letter.reason[:_MAX_REASON_CHARS],
        )
        # The client sends nothing that has neither; what came in that way is an empty value here.
        value = b"" if record.value is None and record.key is None else record.value
        try:
            await self._producer.send(self._topic, value, record.key, letter.headers())
        except MessageSizeTooLargeError:
            # Refused whatever we do: keep what fits rather than stand still for ever.
            size = len(record.value or b"")
            _log.error("dead letter larger than its topic allows, truncating", bytes=size)
            await self._producer.send(
                self._topic,
                (record.value or b"")[:_TRUNCATED_BYTES],
                (record.key or b"")[:1024] or None,
                [*letter.headers(), ("truncated-from", str(size).encode())],
            )

    async def discard(self) -> None:
        """Let go of the connection."""
        await self._producer.discard()

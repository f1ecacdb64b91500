"""A Kafka producer that can always be given up.

aiokafka's producer fails to start while Kafka is down, and its `stop` may then wait for ever. So
every call has a deadline, and after an error the producer is thrown away and built anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError
from aiokafka.partitioner import DefaultPartitioner

from prime_spark.config import KafkaConfig
from prime_spark.runtime.service import close_within, within
from prime_spark.streaming.clients import connection_options

Header = tuple[str, bytes]

# What a Kafka operation raises while the broker is away, restarting or refusing.
KAFKA_ERRORS = (KafkaError, OSError, TimeoutError)

_START_SECONDS = 15.0
_SEND_SECONDS = 15.0
_STOP_SECONDS = 3.0


class Producer:
    """An idempotent producer with acks=all. After any error of a method, call `discard`."""

    def __init__(
        self,
        config: KafkaConfig,
        client_id: str,
        *,
        max_batch_bytes: int = 16 * 1024,
        max_request_bytes: int = 1024 * 1024,
    ) -> None:
        self._config = config
        self._client_id = client_id
        self._max_batch_bytes = max_batch_bytes
        self._max_request_bytes = max_request_bytes
        self._producer: Any = None
        self._partitioner = DefaultPartitioner()

    async def connect(self) -> None:
        """Connect if not connected; raises one of KAFKA_ERRORS."""
        if self._producer is not None:
            return
        self._producer = AIOKafkaProducer(
            **connection_options(self._config, self._client_id),
            acks="all",
            enable_idempotence=True,
            compression_type="gzip",
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

"""What a stopped Kafka costs a memory get: `python tests/integration/bench_memory.py [ROUNDS]`.

As in the API, each get from Redis is followed by an event to the publisher. Rounds with Kafka up
and with Kafka stopped take turns, so that what else the machine does falls on both alike; a round
is a fixed number of gets by a fixed number of concurrent callers, after some that are not
counted. Kafka, Redis and the callers share the machine, and the latency is the library's: no
HTTP. The ratio is that of the medians of the rounds' p99.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from prometheus_client import CollectorRegistry
from tests.integration.servers import KafkaServer, RedisServer, kafka_server, redis_server

from prime_spark.config import DatabaseConfig, KafkaConfig, RedisConfig
from prime_spark.events import ApiEvent, new_event_id
from prime_spark.kafka.publisher import EventPublisher, PublisherConfig
from prime_spark.memory.memory import Memory
from prime_spark.memory.settings import DatabaseTierConfig, MemoryConfig, NasTierConfig
from support import kafka_admin

CALLERS = 16
GETS = 8_000
WARM_UP = 1_000
VALUE = {"text": "x" * 500}
TOPICS = ("analytics.events", "edge.ai.inference", "edge.telemetry")


async def measure(memory: Memory, publisher: EventPublisher, gets: int) -> list[float]:
    """Return the seconds that each of `gets` took."""
    seconds: list[float] = []

    async def call(count: int) -> None:
        for _ in range(count):
            started = time.perf_counter()
            found = await memory.get("key")
            event = ApiEvent(
                time=datetime.now(UTC),
                event_id=new_event_id(),
                method="GET",
                endpoint="/api/memory/get/{key}",
                status=200,
                duration_ms=(time.perf_counter() - started) * 1000,
            )
            publisher.stream_api_event(event)
            seconds.append(time.perf_counter() - started)
            assert found is not None
            assert found.tier == 1

    await asyncio.gather(*(call(gets // CALLERS) for _ in range(CALLERS)))
    return seconds


async def bench(kafka: KafkaServer, redis: RedisServer, rounds: int) -> None:
    memory = Memory.from_config(
        MemoryConfig(
            redis=RedisConfig(
                host=redis.host, port=redis.port, username=redis.username, credential="redis"
            ),
            nas=NasTierConfig(directory="/nonexistent"),
            database=DatabaseTierConfig(
                database=DatabaseConfig(
                    host="127.0.0.1", port=9, name="x", username="x", credential="redis"
                )
            ),
            state=f"{os.environ['CREDENTIALS_DIRECTORY']}/memory.sqlite",
        )
    )
    config = KafkaConfig(
        bootstrap_servers=[kafka.bootstrap_servers],
        username=kafka.admin_username,
        credential="kafka",
    )
    # Small enough that with Kafka stopped the queue is full before the first measured get.
    settings = PublisherConfig(max_events=WARM_UP)
    publisher = EventPublisher(config, "bench", settings, CollectorRegistry())
    await publisher.start()
    await memory.set("key", VALUE)
    p99: dict[str, list[float]] = {"up": [], "down": []}
    for number in range(1, rounds + 1):
        for state in ("up", "down"):
            if state == "down":
                await asyncio.to_thread(kafka.stop)
            elif not kafka.running:
                await asyncio.to_thread(kafka.start)
            deadline = time.monotonic() + 60
            while publisher.health().connected != (state == "up"):
                assert time.monotonic() < deadline, publisher.health()
                await asyncio.sleep(0.05)
            await measure(memory, publisher, WARM_UP)
            seconds = await measure(memory, publisher, GETS)
            cuts = statistics.quantiles(seconds, n=100)
            p99[state].append(cuts[98])
            health = publisher.health()
            sys.stdout.write(
                f"round {number} kafka {state:<4} p50 {cuts[49] * 1000:.2f} ms"
                f"  p99 {cuts[98] * 1000:.2f} ms  queued {health.queued} dropped {health.dropped}\n"
            )
    await publisher.stop()
    await memory.close()
    up, down = statistics.median(p99["up"]), statistics.median(p99["down"])
    sys.stdout.write(
        f"memory_get_p99_kafka_up_ms={up * 1000:.2f} memory_get_p99_kafka_down_ms="
        f"{down * 1000:.2f} ratio={down / up:.2f}\n"
    )


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    with tempfile.TemporaryDirectory() as name, kafka_server() as kafka, redis_server() as redis:
        folder = Path(name)
        kafka_admin(kafka, folder, topics={topic: {"partitions": 3} for topic in TOPICS}).answer()
        (folder / "credentials/redis").write_text(redis.password)
        (folder / "credentials/kafka").write_text(kafka.admin_password)
        os.environ["CREDENTIALS_DIRECTORY"] = str(folder / "credentials")
        asyncio.run(bench(kafka, redis, rounds))


if __name__ == "__main__":
    main()

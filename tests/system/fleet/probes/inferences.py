"""Send inferences to their topic as the API would; arguments: how many, then the sources.

Needs aiokafka and the API's credentials. Latencies differ by source and from one to the next.
"""

import asyncio
import json
import random
import sys
import uuid
from datetime import UTC, datetime
from pathlib import Path

from aiokafka import AIOKafkaProducer

HOME = Path("/etc/prime-spark/api")


def inference(source: str, slowness: int) -> bytes:
    latency = random.uniform(200, 400) * slowness
    event = {
        "time": datetime.now(UTC).isoformat(),
        "event_id": str(uuid.uuid4()),
        "model_name": "load-test",
        "source": source,
        "latency_ms": latency,
        "input_tokens": 40,
        "output_tokens": random.randint(20, 120),
        "prompt_chars": 160,
        "response_chars": 400,
    }
    return json.dumps(event).encode()


async def main(count: int, sources: list[str]) -> int:
    kafka = json.loads((HOME / "config.json").read_text())["kafka"]
    async with AIOKafkaProducer(
        bootstrap_servers=kafka["bootstrap_servers"],
        security_protocol="SASL_PLAINTEXT",
        sasl_mechanism="SCRAM-SHA-512",
        sasl_plain_username=kafka["username"],
        sasl_plain_password=(HOME / "credentials" / kafka["credential"]).read_text().strip(),
        acks="all",
    ) as producer:
        for _ in range(count):
            for slowness, source in enumerate(sources, 1):
                event = inference(source, slowness)
                await producer.send_and_wait("edge.ai.inference", event, b"load-test")
    return count * len(sources)


print(json.dumps(asyncio.run(main(int(sys.argv[1]), sys.argv[2:]))))

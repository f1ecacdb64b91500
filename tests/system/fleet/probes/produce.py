"""Send messages to the telemetry topic as a collector would, in order, to one partition.

Arguments: key, compression ("none", "gzip" and so on), and each message in base64. Needs aiokafka
and the collector's credentials.
"""

import asyncio
import base64
import json
import sys
from pathlib import Path

from aiokafka import AIOKafkaProducer

HOME = Path("/etc/prime-spark/telemetry")


async def main(key: str, compression: str, messages: list[bytes]) -> list[int]:
    config = json.loads((HOME / "config.json").read_text())
    kafka = config["kafka"]
    async with AIOKafkaProducer(
        bootstrap_servers=kafka["bootstrap_servers"],
        security_protocol="SASL_PLAINTEXT",
        sasl_mechanism="SCRAM-SHA-512",
        sasl_plain_username=kafka["username"],
        sasl_plain_password=(HOME / "credentials" / kafka["credential"]).read_text().strip(),
        acks="all",
        compression_type=None if compression == "none" else compression,
    ) as producer:
        return [
            (await producer.send_and_wait(config["topic"], message, key.encode())).offset
            for message in messages
        ]


MESSAGES = [base64.b64decode(argument) for argument in sys.argv[3:]]
print(json.dumps(asyncio.run(main(sys.argv[1], sys.argv[2], MESSAGES))))

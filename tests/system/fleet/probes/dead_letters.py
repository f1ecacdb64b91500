"""The letters in the dead-letter topic with a key, oldest first. Needs kafka-python.

Arguments: topic, key. Prints [{"value": base64, "headers": {name: text}}].
"""

import base64
import json
import sys
from pathlib import Path
from typing import Any

from kafka import KafkaConsumer, TopicPartition

HOME = Path("/etc/prime-spark/kafka-admin")


def main(topic: str, key: bytes) -> list[dict[str, Any]]:
    config = json.loads((HOME / "config.json").read_text())
    consumer = KafkaConsumer(
        bootstrap_servers=config["bootstrap_servers"],
        security_protocol="SASL_PLAINTEXT",
        sasl_mechanism="SCRAM-SHA-512",
        sasl_plain_username=config["username"],
        sasl_plain_password=(HOME / "credentials" / config["credential"]).read_text().strip(),
        group_id=None,
    )
    found = []
    try:
        partition = TopicPartition(topic, 0)
        consumer.assign([partition])
        consumer.seek_to_beginning(partition)
        end = consumer.end_offsets([partition])[partition]
        while consumer.position(partition) < end:
            for records in consumer.poll(timeout_ms=5000).values():
                found += [
                    {
                        "value": base64.b64encode(record.value or b"").decode(),
                        "headers": {name: value.decode() for name, value in record.headers},
                    }
                    for record in records
                    if record.key == key
                ]
    finally:
        consumer.close()
    return found


print(json.dumps(main(sys.argv[1], sys.argv[2].encode())))

"""The messages of a topic since a moment, and where its partitions end. Needs kafka-python.

Arguments: topic, moment in epoch seconds or "end" for none. Prints {"messages": [text], "end": n},
where n counts all messages ever written.
"""

import json
import sys
from pathlib import Path
from typing import Any

from kafka import KafkaConsumer, TopicPartition

HOME = Path("/etc/prime-spark/kafka-admin")


def main(topic: str, moment: str) -> dict[str, Any]:
    config = json.loads((HOME / "config.json").read_text())
    consumer = KafkaConsumer(
        bootstrap_servers=config["bootstrap_servers"],
        security_protocol="SASL_PLAINTEXT",
        sasl_mechanism="SCRAM-SHA-512",
        sasl_plain_username=config["username"],
        sasl_plain_password=(HOME / "credentials" / config["credential"]).read_text().strip(),
        group_id=None,
    )
    found: list[str] = []
    try:
        numbers = consumer.partitions_for_topic(topic)
        if not numbers:
            raise SystemExit(f"no topic {topic}")
        partitions = [TopicPartition(topic, number) for number in numbers]
        ends = consumer.end_offsets(partitions)
        if moment != "end":
            asked = {partition: int(float(moment) * 1000) for partition in partitions}
            for partition, start in consumer.offsets_for_times(asked).items():
                if start is None:
                    continue
                consumer.assign([partition])
                consumer.seek(partition, start.offset)
                while consumer.position(partition) < ends[partition]:
                    for records in consumer.poll(timeout_ms=5000).values():
                        found += [(record.value or b"").decode() for record in records]
    finally:
        consumer.close()
    return {"messages": found, "end": sum(ends.values())}


print(json.dumps(main(sys.argv[1], sys.argv[2])))

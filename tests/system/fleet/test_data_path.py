"""S4 and S5: what is measured on a host arrives in TimescaleDB, each sample once, none lost."""

from __future__ import annotations

import base64
import json
import math
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.system.fleet import fleet
from tests.system.fleet.condition import buffered
from tests.system.fleet.fleet import (
    connect,
    execute,
    members,
    probe,
    query,
    service_python,
    setting,
    shell,
)

DEVICES = members("telemetry")
INTERVAL = int(setting(DEVICES[0], "telemetry", "telemetry_interval_seconds"))
METRICS = {"cpu_percent", "memory_percent", "disk_percent", "load_avg"}
DEAD_LETTERS = "prime-spark.dlq"
# What a batch takes from the host into the database, on a busy machine.
UNDERWAY = 5


def newest() -> dict[str, datetime]:
    """Time of each device's newest row."""
    rows = query(
        "SELECT device_id, max(time) AS time FROM device_metrics"
        " WHERE time > now() - interval '1 hour' GROUP BY 1"
    )
    return {row["device_id"]: datetime.fromisoformat(row["time"]) for row in rows}


def test_every_device_has_written_a_row_within_the_last_interval() -> None:
    started = datetime.now(UTC)
    seen = fleet.wait_until(
        "a row of every device, newer than this test",
        newest,
        INTERVAL + UNDERWAY,
        lambda rows: all(rows.get(device, started) > started for device in DEVICES),
    )
    assert max(seen[device] for device in DEVICES) <= datetime.now(UTC)


@pytest.mark.parametrize("device", DEVICES)
def test_a_sample_has_the_metrics_under_their_names(device: str) -> None:
    rows = query(
        f"SELECT metric_name, value, time FROM device_metrics WHERE device_id = '{device}'"
        f" AND time = (SELECT max(time) FROM device_metrics WHERE device_id = '{device}')"
    )
    values = {row["metric_name"]: row["value"] for row in rows}
    assert set(values) - {"temperature"} == METRICS
    assert all(math.isfinite(value) for value in values.values())
    assert all(0 <= values[name] <= 100 for name in values if name.endswith("_percent"))
    assert values["memory_percent"] > 0
    assert values["disk_percent"] > 0


def test_redis_has_the_newest_sample_of_every_device() -> None:
    (name,) = members("redis")
    limit = timedelta(seconds=INTERVAL + UNDERWAY)

    def hashes() -> dict[str, dict[str, str]]:
        data = setting(name, "redis", "redis_data_directory")
        return dict(probe(connect(name), "redis_hashes", data))

    def fresh(found: dict[str, dict[str, str]]) -> bool:
        now = datetime.now(UTC)
        times = [found.get(f"metrics:{device}", {}).get("time") for device in DEVICES]
        return all(time and now - datetime.fromisoformat(time) < limit for time in times)

    found = fleet.wait_until("a fresh hash of every device in Redis", hashes, 30, fresh)
    for device in DEVICES:
        fields = found[f"metrics:{device}"]
        assert set(fields) == {"cpu", "memory", "disk", "time"}
        assert all(0 <= float(fields[key]) <= 100 for key in ("cpu", "memory", "disk"))


# --- messages of our own ---------------------------------------------------------------------


@pytest.fixture
def device() -> Iterator[str]:
    """The name of a device that does not exist; its rows are removed afterwards."""
    name = f"fleet-test-{uuid.uuid4()}"
    yield name
    execute(f"DELETE FROM device_metrics WHERE device_id = '{name}'")


def message(device: str, moment: datetime, value: float) -> bytes:
    document = {"time": moment.isoformat(), "device_id": device, "metrics": {"cpu_percent": value}}
    return json.dumps(document).encode()


def produce(device: str, *messages: bytes) -> list[int]:
    """Send as a collector; returns the offsets. From a spoke, so it goes through the VPN."""
    sender = next(name for name in DEVICES if name not in members("kafka"))
    arguments = ["none", *(base64.b64encode(m).decode() for m in messages)]
    python = service_python("telemetry")
    return list(probe(connect(sender), "produce", device, *arguments, python=python))


def rows_of(device: str) -> list[tuple[datetime, float]]:
    rows = query(f"SELECT time, value FROM device_metrics WHERE device_id = '{device}'")
    return sorted((datetime.fromisoformat(row["time"]), row["value"]) for row in rows)


def letters_of(device: str) -> list[dict[str, Any]]:
    (name,) = members("kafka")
    python = service_python("kafka-admin")
    return list(probe(connect(name), "dead_letters", DEAD_LETTERS, device, python=python))


def test_a_message_sent_twice_is_one_row_with_the_time_of_its_producer(device: str) -> None:
    # Not near the present and with an odd fraction, so that no clock of ours could have given it.
    moment = (datetime.now(UTC) - timedelta(minutes=20)).replace(microsecond=123457)
    last = moment + timedelta(seconds=1)
    produce(device, message(device, moment, 12.5), message(device, moment, 12.5))
    # A later run of the consumer has to recognise it as well; the last message shows that it is by.
    produce(device, message(device, moment, 12.5), message(device, last, 99.0))
    rows = fleet.wait_until(
        "the row of the last message", lambda: rows_of(device), 20, lambda r: (last, 99.0) in r
    )
    assert rows == [(moment, 12.5), (last, 99.0)]


def test_a_message_of_every_compression_is_stored(device: str) -> None:
    # Where ingest runs, for its libraries, and with the credentials of the collector there.
    (sender,) = members("ingest")
    moment = (datetime.now(UTC) - timedelta(minutes=1)).replace(microsecond=0)
    sent = []
    for number, compression in enumerate(("gzip", "snappy", "lz4", "zstd")):
        sent.append((moment + timedelta(seconds=number), float(number)))
        body = base64.b64encode(message(device, *sent[-1])).decode()
        python = service_python("ingest")
        probe(connect(sender), "produce", device, compression, body, python=python)
    rows = fleet.wait_until(
        "the rows", lambda: rows_of(device), 20, lambda found: len(found) >= len(sent)
    )
    assert rows == sent


def test_a_poison_message_costs_no_other_and_is_kept_with_its_origin(device: str) -> None:
    moment = datetime.now(UTC) - timedelta(minutes=1)
    times = [moment + timedelta(seconds=n) for n in range(3)]
    poison = [
        b'{"time": "yesterday", \xff\x00 not even text',
        message(device, datetime.now(UTC) + timedelta(hours=2), 1.0),
        json.dumps({"time": moment.isoformat(), "device_id": device, "metrics": {}}).encode(),
    ]
    good = [message(device, time, float(n)) for n, time in enumerate(times)]
    sent = [good[0], poison[0], good[1], poison[1], poison[2], good[2]]
    offsets = produce(device, *sent)
    rows = fleet.wait_until(
        "the good rows", lambda: rows_of(device), 20, lambda found: len(found) >= len(good)
    )
    assert rows == [(time, float(n)) for n, time in enumerate(times)]

    letters = fleet.wait_until(
        "the dead letters", lambda: letters_of(device), 20, lambda found: len(found) >= len(poison)
    )
    assert [base64.b64decode(letter["value"]) for letter in letters] == poison
    for letter, original in zip(letters, poison, strict=True):
        headers = letter["headers"]
        assert headers["topic"] == "edge.telemetry"
        assert headers["partition"].isdigit()
        assert int(headers["offset"]) == offsets[sent.index(original)]
        assert headers["reason"]
    assert "future" in letters[1]["headers"]["reason"]


# --- Kafka goes away -------------------------------------------------------------------------


def restarts(unit: str, group: str) -> dict[str, str]:
    script = 'systemctl show -p NRestarts,ExecMainPID "$1" | sort | xargs'
    return {name: shell(connect(name), script, unit) for name in members(group)}


def samples(since: int, until: int) -> dict[str, Counter[int]]:
    """By device: number of samples for each tick of the interval, ticks in [since, until)."""
    rows = query(
        "SELECT device_id, extract(epoch FROM time) AS at FROM device_metrics"
        f" WHERE metric_name = 'cpu_percent' AND time >= to_timestamp({since * INTERVAL})"
        f" AND time < to_timestamp({until * INTERVAL})"
    )
    found: dict[str, Counter[int]] = {device: Counter() for device in DEVICES}
    for row in rows:
        if row["device_id"] in found:
            found[row["device_id"]][int(row["at"] // INTERVAL)] += 1
    return found


def test_no_sample_is_lost_or_doubled_while_kafka_is_away() -> None:
    (name,) = members("kafka")
    host = connect(name)
    before = (
        restarts("prime-spark-telemetry", "telemetry"),
        restarts("prime-spark-ingest", "ingest"),
    )
    ids = shell(host, "docker ps -q --filter label=com.docker.compose.project=kafka")
    first = int(time.time()) // INTERVAL
    shell(host, "docker stop $1", ids, seconds=90)
    try:
        # Longer than one sample: every collector has to keep several, and their order.
        fleet.wait_until(
            "samples kept by every collector",
            buffered,
            60,
            lambda seen: set(seen) == set(DEVICES) and min(seen.values()) >= 2,
        )
    finally:
        shell(host, "docker start $1", ids)
    last = int(time.time()) // INTERVAL + 1
    expected = {device: Counter(range(first, last)) for device in DEVICES}
    fleet.wait_until(
        "every sample of the outage, once",
        lambda: samples(first, last),
        90,
        lambda seen: seen == expected,
        interval=1,
    )
    fleet.wait_until(
        "empty buffers", buffered, 30, lambda seen: set(seen.values()) == {0.0}, interval=0.2
    )
    after = restarts("prime-spark-telemetry", "telemetry"), restarts("prime-spark-ingest", "ingest")
    assert after == before, "a service did not survive the outage"

"""Faults while rows are in flight; then what was produced is compared with what is stored.

20,000 rows each, 200,000 with PRIME_SPARK_FULL=1.
"""

from __future__ import annotations

import base64
import json
import os
import random
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

import pytest
from tests.integration.servers import KafkaServer, PostgresServer

from ingest_support import PARTITIONS, START, Pipeline, create_pipeline
from prime_spark.events import Telemetry, encode
from support import (
    Command,
    Daemon,
    eventually,
    free_port,
    kafka_config,
    producer,
    read_all,
    running,
)

FULL = os.environ.get("PRIME_SPARK_FULL") == "1"
METRICS = ("cpu_percent", "disk_percent", "load_avg", "memory_percent", "temperature")
ROWS = 200_000 if FULL else 20_000
MESSAGES = ROWS // len(METRICS)
DRAIN_SECONDS = 300 if FULL else 60
FAR = START.replace(year=2999)
ANCIENT = START.replace(year=1990)
# Not cut off: a surrogate has no other half, and little comes after it.
RAW = b'{"time": "2026-03-01T00:00:00Z", "endpoint": "\\ud800"}'
Row = tuple[datetime, str, str, float, str | None]

pytestmark = pytest.mark.timeout(900 if FULL else 180)


@pytest.fixture
def path(kafka: KafkaServer, postgres: PostgresServer, tmp_path: Path) -> Pipeline:
    """A pipeline of small batches: many transactions and commits for a fault to fall between."""
    pipeline = create_pipeline(kafka, postgres, tmp_path)
    pipeline.command.config["batch"] = {"max_records": 50, "max_wait_ms": 50}
    return pipeline


@pytest.fixture
def chance() -> random.Random:
    seed = random.randrange(10**6)
    sys.stdout.write(f"seed {seed}\n")  # shown when the test fails
    return random.Random(seed)


def event(number: int) -> Telemetry:
    return Telemetry(
        time=START + timedelta(milliseconds=number * 37),
        device_id=f"host-{number % 7}",
        metrics={name: number / 3 + index for index, name in enumerate(METRICS)},
        metadata={"number": number},
    )


def send(path: Pipeline, numbers: range) -> None:
    """Produce events, all acknowledged on return."""
    with producer(path.kafka) as client:
        for number in numbers:
            one = event(number)
            client.send(path.telemetry, encode(one), key=one.key.encode())


def slices(count: int) -> Iterator[range]:
    """Cut all messages into `count` parts."""
    size = MESSAGES // count
    for start in range(0, count * size, size):
        end = MESSAGES if start + 2 * size > MESSAGES else start + size
        yield range(start, end)


def expected(numbers: range) -> list[Row]:
    return sorted(
        (one.time, one.device_id, name, value, json.dumps(one.metadata))
        for one in map(event, numbers)
        for name, value in one.metrics.items()
    )


def stored(path: Pipeline) -> list[Row]:
    query = "SELECT time, device_id, metric_name, value, metadata::text FROM device_metrics"
    return sorted(tuple(row) for row in path.rows(query))


def finish(path: Pipeline, ingest: Daemon) -> None:
    """Wait for the rows, then compare all of them with what was produced."""
    eventually(lambda: path.count() >= ROWS, DRAIN_SECONDS, "all rows")
    eventually(ingest.healthy, 60, "healthy")
    assert ingest.terminate() == 0
    check(path)


def check(path: Pipeline) -> None:
    found, wanted = stored(path), expected(range(MESSAGES))
    assert len(found) == len(wanted)
    assert found == wanted
    assert path.dead_letters() == []


def has_more_than(path: Pipeline, rows: int) -> bool:
    return path.count() > rows


def under_way(path: Pipeline, before: int) -> None:
    """Return once rows of the newest slice are being stored."""
    eventually(partial(has_more_than, path, before), 60, "progress")


def test_killed_at_random_points(path: Pipeline, chance: random.Random) -> None:
    with running(path.command) as ingest:
        for numbers in slices(6):
            before = path.count()
            send(path, numbers)
            under_way(path, before)
            time.sleep(chance.uniform(0, 0.2))  # the random point
            ingest.kill()
            ingest.start()
        finish(path, ingest)


def test_broker_restarted(path: Pipeline) -> None:
    with running(path.command) as ingest:
        for numbers, end in zip(
            slices(2), (KafkaServer.kill, KafkaServer.stop), strict=True
        ):  # SIGKILL, then in an orderly way
            before = path.count()
            send(path, numbers)
            under_way(path, before)
            end(path.kafka)
            path.kafka.start()
        finish(path, ingest)


def test_database_restarted(path: Pipeline, chance: random.Random) -> None:
    ends = [PostgresServer.kill, PostgresServer.stop] * 2
    with running(path.command) as ingest:
        for numbers, end in zip(slices(len(ends)), ends, strict=True):
            before = path.count()
            send(path, numbers)
            under_way(path, before)
            time.sleep(chance.uniform(0, 0.1))  # the random point
            end(path.postgres)
            path.postgres.start()
        finish(path, ingest)


def test_database_gone_for_a_while(path: Pipeline) -> None:
    """Longer than the session lasts: ingest stays in its group; then it is killed as well."""
    away = 60 if FULL else 8
    first, second = slices(2)
    with running(path.command) as ingest:
        send(path, first)
        under_way(path, 0)
        path.postgres.kill()
        try:
            until = time.monotonic() + away
            send(path, second)
            eventually(lambda: ingest.health().get("http") == 503, 30, "failing")
            while time.monotonic() < until:
                health = ingest.health()["components"]
                assert health["kafka"]["ok"]
                assert not health["database"]["ok"]
                time.sleep(0.5)
            held = ingest.metric("prime_spark_ingest_messages_total")
            # One batch that is held and one ahead of it, however much is waiting in Kafka.
            assert held <= len(first) + 2 * 50 + PARTITIONS * 50
            assert ingest.metric("prime_spark_ingest_retries_total") > 0
            # With what it holds: had it committed the offsets of that, the rows would be lost.
            ingest.kill()
            ingest.start()
        finally:
            path.postgres.start()
        finish(path, ingest)


def member(path: Pipeline, number: int) -> Command:
    folder = path.command.folder / f"member-{number}"
    folder.mkdir()
    config = {
        **path.command.config,
        "group_instance_id": f"test-{number}",
        "http": {"host": "127.0.0.1", "port": free_port()},
    }
    return Command("ingest", folder, config, path.command.credentials)


def test_processes_come_and_go(path: Pipeline) -> None:
    """Joining, leaving in order, and dying: each moves partitions while rows are in flight."""
    steps = slices(4)
    with ExitStack() as stack:

        def add(number: int) -> Daemon:
            return stack.enter_context(running(member(path, number)))

        def feed() -> None:
            before = path.count()
            send(path, next(steps))
            under_way(path, before)

        one = add(1)
        feed()
        two = add(2)
        eventually(two.healthy, 60)
        feed()
        three = add(3)
        assert one.terminate() == 0
        eventually(three.healthy, 60)
        feed()
        two.kill()
        feed()
        finish(path, three)


def poison(topic_bytes: int) -> dict[str, bytes]:
    """Messages that cannot be stored, by what is wrong with them."""
    good = encode(event(0))
    return {
        "truncated": good[: len(good) // 2],
        "wrong type": good.replace(b'"cpu_percent":', b'"cpu_percent":"hot","x":'),
        "wrong shape": b'["cpu_percent",1]',
        "NaN": good.replace(b'"cpu_percent":', b'"cpu_percent":NaN,"x":'),
        "NUL in a key": good.replace(b"host-0", b"host-\\u0000"),
        "NUL in a value": good.replace(b'"number":0', b'"note":"\\u0000"'),
        "raw NUL": good.replace(b"host-0", b"host-\0"),
        "largest size": b"{" + b"x" * (topic_bytes - 200),
        "far future": encode(Telemetry(time=FAR, device_id="h", metrics={"a": 1})),
        "only the database knows": encode(
            Telemetry(time=START, device_id="late", metrics={"cpu_percent": 2e9, "load_avg": 1.0})
        ),
    }  # fmt: skip


def test_poison_among_good_rows(path: Pipeline, chance: random.Random) -> None:
    path.rows("ALTER TABLE device_metrics ADD CONSTRAINT small CHECK (value < 1e9)")
    path.command.config["batch"] = {"max_records": 500, "max_wait_ms": 50}
    bad = list(poison(1_048_576).values()) * 3
    chance.shuffle(bad)
    sent: set[tuple[int, int]] = set()
    with running(path.command) as ingest:
        with producer(path.kafka) as client:
            pause = MESSAGES // len(bad)
            futures = []
            for number in range(MESSAGES):
                one = event(number)
                client.send(path.telemetry, encode(one), key=one.key.encode())
                if number % pause == 0 and bad:
                    futures.append(client.send(path.telemetry, bad.pop(), key=b"poison"))
            sent = {((m := f.get(timeout=30)).partition, m.offset) for f in futures}
            while bad:
                m = client.send(path.telemetry, bad.pop(), key=b"poison").get(timeout=30)
                sent.add((m.partition, m.offset))
        eventually(lambda: path.count() >= ROWS, DRAIN_SECONDS, "all good rows")
        eventually(lambda: len(path.dead_letters()) >= len(sent), 60, "all dead letters")
        eventually(ingest.healthy)
        assert ingest.terminate() == 0
    assert stored(path) == expected(range(MESSAGES))
    letters = path.dead_letters()
    buried = [(int(headers["partition"]), int(headers["offset"])) for headers, _ in letters]
    assert sorted(buried) == sorted(sent)
    originals = {
        (record.partition, record.offset): record.value
        for record in read_all(path.kafka, path.telemetry, PARTITIONS)
    }
    assert all(originals[place] == value for place, (_, value) in zip(buried, letters, strict=True))
    replayed(path, len(sent))


def replayed(path: Pipeline, letters: int) -> None:
    """Replay before and after what was wrong with the database has been put right."""
    command = path.command.dlq
    still = command("replay", expect=1)
    assert f"{letters} letters: 0 stored (0 rows), 0 stored before, {letters} refused" in still
    path.rows("ALTER TABLE device_metrics DROP CONSTRAINT small")
    dry = command("replay", "--reason", "23514", "--dry-run")
    assert dry.startswith("3 letters: 3 (6 rows) would be offered")
    assert path.count() == ROWS
    # The same message was sent three times: one is stored, the others are known.
    healed = "3 letters: 1 stored (2 rows), 2 stored before, 0 refused\n"
    assert command("replay", "--reason", "23514") == healed
    assert path.count() == ROWS + 2
    again = command("replay", "--reason", "23514")
    assert again == "3 letters: 0 stored (0 rows), 3 stored before, 0 refused\n"
    assert path.count() == ROWS + 2
    assert len(path.dead_letters()) == letters


def test_dead_letters_from_the_command_line(path: Pipeline) -> None:
    with running(path.command) as ingest:
        with producer(path.kafka) as client:
            place = client.send(path.telemetry, b"not \x1b[31m json", key=b"k").get(timeout=30)
            client.send(f"{path.prefix}.api", RAW).get(timeout=30)
            ancient = encode(Telemetry(time=ANCIENT, device_id="h", metrics={"a": 1}))
            client.send(path.telemetry, ancient).get(timeout=30)
        eventually(lambda: ingest.metric("prime_spark_ingest_dead_letters_total") == 3)
        assert ingest.terminate() == 0
    command = path.command.dlq
    listed = [json.loads(line) for line in command("list", "--json").splitlines()]
    assert {letter["topic"] for letter in listed} == {path.telemetry, f"{path.prefix}.api"}
    assert "a surrogate without its other half" in command("list", "--topic", f"{path.prefix}.api")
    (only,) = command("list", "--reason", "character", "--json").splitlines()
    letter = json.loads(only)
    assert (letter["partition"], letter["offset"]) == (place.partition, place.offset)
    assert command("list", "--reason", "no such reason") == "0 dead letters\n"
    assert "1 dead letters" in command("list", "--reason", "INVALID CHAR", "--offset", "0-5")
    assert "\x1b" not in command("show", letter["id"]), "hostile bytes do not reach the terminal"
    shown = json.loads(command("show", letter["id"], "--json"))
    assert shown["value"] == "not \\x1b[31m json"
    assert shown["key"] == "k"
    assert base64.b64decode(shown["value_base64"]) == b"not \x1b[31m json"
    (other,) = (letter["id"] for letter in listed if letter["topic"] != path.telemetry)
    assert path.command.dlq_bytes("show", other, "--raw") == RAW
    assert "more than 3650 days ago" in command("replay", expect=1), "the bound of ingest holds"
    assert "no dead letter 0:999" in command("show", "0:999", expect=1)
    assert "not PARTITION:OFFSET" in command("show", "17", expect=2)
    assert "neither N nor N-M" in command("list", "--offset", "x", expect=2)
    assert "neither N nor N-M" in command(
        "list", "--offset", "\N{ARABIC-INDIC DIGIT ONE}", expect=2
    )


def test_a_reader_that_stops_reading_is_no_error(path: Pipeline) -> None:
    """As with `dlq list | head`."""
    with producer(path.kafka) as client:
        client.send(f"{path.prefix}.dlq", b"x", headers=[("topic", path.telemetry.encode())])
    for command in ("list", "replay --dry-run", "show 0:0 --raw"):
        name, *options = command.split()
        with path.command.dlq_process(name, *options) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.close()
            assert (process.wait(timeout=90), process.stderr.read()) == (0, b"")


def test_dead_letter_commands_say_what_is_wrong(path: Pipeline) -> None:
    command = path.command.dlq
    with producer(path.kafka) as client:
        # A good message that was dead-lettered: as after a release that was too strict.
        headers = [("topic", path.telemetry.encode()), ("partition", b"0"), ("offset", b"7")]
        client.send(f"{path.prefix}.dlq", encode(event(1)), headers=headers)
    path.postgres.stop()
    try:
        away = command("replay", expect=3)
        assert f"database 127.0.0.1:{path.postgres.port}/{path.database}" in away
        assert "replay again" in away
    finally:
        path.postgres.start()
    assert command("replay") == "1 letters: 1 stored (5 rows), 0 stored before, 0 refused\n"
    path.command.config["dead_letter_topic"] = "nowhere"
    assert "no topic 'nowhere'" in command("list", expect=3)
    path.command.config["kafka"]["bootstrap_servers"] = [f"127.0.0.1:{free_port()}"]
    assert "Kafka at 127.0.0.1" in command("list", expect=3)


def test_simulated_fleet(path: Pipeline, tmp_path: Path) -> None:
    """What the simulator says it has sent is what is stored and what is dead-lettered."""
    folder = tmp_path / "simulate"
    folder.mkdir()
    config = {"kafka": kafka_config(path.kafka, path.kafka.admin_username), "topic": path.telemetry}
    secrets = {"kafka_password": path.kafka.admin_password}
    simulate = Command("simulate", folder, config, secrets)
    options = ["--devices", "50", "--rate", "0", "--count", "2000", "--seed", "7"]
    options += ["--start", "2026-03-01T00:00:00Z", "--faults", "0.02", "--json"]
    with running(path.command) as ingest:
        sent = simulate.answer(*options)
        assert sent["messages"] == 2000
        assert sent["complete"]
        broken = sum(sent["faults"].values())
        assert 0 < broken < 100
        eventually(lambda: path.count() >= sent["rows"], 60, "all rows")
        eventually(lambda: ingest.metric("prime_spark_ingest_dead_letters_total") == broken)
        assert simulate.answer(*options)["rows"] == sent["rows"]
        known = "prime_spark_ingest_duplicates_total"
        eventually(lambda: ingest.metric(known) == sent["rows"], 60, "the same fleet again")
        assert path.count() == sent["rows"]
        started = time.monotonic()
        paced = simulate.run("--rate", "100", "--count", "200", "--devices", "3").stdout
        assert time.monotonic() - started >= 1.9
        assert paced.startswith("200 messages of 3 devices in ")
    config["topic"] = "nowhere"
    refused = simulate.run("--count", "1", expect=3)
    assert "topic 'nowhere' on Kafka" in refused.stderr

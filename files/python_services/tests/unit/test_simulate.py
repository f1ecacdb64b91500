from __future__ import annotations

import itertools
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from prime_spark.events import EventError, Telemetry, check_not_future, decode
from prime_spark.simulate.cli import main
from prime_spark.simulate.fleet import FAULTS, Message, messages

START = datetime(2026, 3, 1, tzinfo=UTC)


def take(count: int, seed: int = 1, devices: int = 7, faults: float = 0.0) -> list[Message]:
    stream = messages(devices=devices, start=START, interval=5.0, seed=seed, faults=faults)
    return list(itertools.islice(stream, count))


def test_same_seed_same_bytes() -> None:
    assert take(100, faults=0.3) == take(100, faults=0.3)
    assert take(100) != take(100, seed=2)


def test_good_messages_are_what_the_collector_sends() -> None:
    events = [decode(message.value, Telemetry) for message in take(70)]
    assert [event.device_id for event in events[:7]] == [f"sim-{n:04d}" for n in range(1, 8)]
    assert (events[7].time - events[0].time).total_seconds() == 5.0
    assert len({(event.device_id, event.time) for event in events}) == 70
    for event, message in zip(events, take(70), strict=True):
        assert message.rows == len(event.metrics)
        assert message.key == event.device_id.encode()
        assert all(0 <= event.metrics[f"{name}_percent"] <= 100 for name in ("cpu", "memory"))


def test_every_fault_is_refused() -> None:
    found = take(500, faults=1.0)
    assert {message.fault for message in found} == set(FAULTS)
    for message in found:
        assert message.rows == 0
        with pytest.raises(EventError):
            check_not_future(decode(message.value, Telemetry), datetime.now(UTC))


def test_share_of_faults() -> None:
    broken = sum(message.fault is not None for message in take(5000, faults=0.1))
    assert 400 < broken < 600


def test_dry_run_needs_no_configuration(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--dry-run", "--count", "3", "--devices", "2", "--config", "/nowhere"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert [json.loads(line)["device_id"] for line in lines] == ["sim-0001", "sim-0002", "sim-0001"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--seconds or --count"),
        (["--count", "0"], "whole number above 0"),
        (["--count", "1", "--faults", "1.5"], "between 0 and 1"),
        (["--count", "1", "--rate", "-1"], "number from 0 on"),
        (["--count", "1", "--start", "2026-03-01T00:00:00"], "no time zone"),
        (["--count", "1", "--start", "yesterday"], "is not a time"),
        (["--seconds", "1", "--dry-run"], "--count"),
        (["--count", "1", "--config", "/nowhere"], "cannot read the configuration"),
    ],
)
def test_wrong_usage(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_configuration_without_kafka(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(SystemExit):
        main(["--count", "1", "--config", str(tmp_path / "config.json")])
    assert "missing required field `kafka`" in capsys.readouterr().err

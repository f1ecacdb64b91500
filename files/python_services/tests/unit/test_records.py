"""Batches of Kafka's log that unpack to more than a process has."""

from __future__ import annotations

from typing import Any

import aiokafka
import aiokafka.consumer.fetcher
import pytest
from aiokafka import TopicPartition
from aiokafka.consumer.fetcher import READ_COMMITTED, Fetcher, PartitionRecords
from aiokafka.record.default_records import _DefaultRecordBatchBuilderPy, _DefaultRecordBatchPy
from aiokafka.record.memory_records import _MemoryRecordsPy

from prime_spark.kafka import records
from prime_spark.kafka.records import _Batches

CODECS = {"none": 0, "gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}


class NoText(str):
    """The name of a header as no client of Kafka's sends it."""

    def encode(self, *_: Any) -> bytes:
        return b"\xff"


def batch(codec: str, *values: bytes, name: str = "name") -> bytes:
    builder = _DefaultRecordBatchBuilderPy(
        magic=2, compression_type=CODECS[codec], is_transactional=0, producer_id=-1,
        producer_epoch=-1, base_sequence=-1, batch_size=1 << 30,
    )  # fmt: skip
    for offset, value in enumerate(values):
        builder.append(offset, timestamp=5, key=None, value=value, headers=[(name, b"")])
    return bytes(builder.build())


def read(data: bytes) -> list[Any]:
    batches = _Batches(data)
    found = []
    while batches.has_next():
        found += list(batches.next_batch())
    return found


@pytest.mark.parametrize("codec", CODECS)
def test_what_fits_is_read(codec: str) -> None:
    values = [b"%d" % number * 1000 for number in range(100)]
    assert [(r.offset, r.value) for r in read(batch(codec, *values))] == list(enumerate(values))


@pytest.mark.parametrize("codec", ["gzip", "lz4", "zstd"])
def test_what_is_too_large_is_one_message_as_it_came(
    codec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "_MAX_UNPACKED", 1 << 20)
    data = batch(codec, b"first", b"\0" * (2 << 20), b"last")
    assert len(data) < 20_000
    (found,) = read(data)
    assert (found.offset, found.key, found.value) == (2, None, data)
    with pytest.raises(ValueError, match="once unpacked"):
        records.check_read(found.value)
    (good,) = read(batch(codec, b"\0" * (1 << 19)))
    assert len(good.value) == 1 << 19
    records.check_read(good.value)


OTHERWISE = (
    f"aiokafka {aiokafka.__version__} reads batches otherwise than prime_spark.kafka.records "
    "takes for granted: compare both, then repair it and this test"
)


def test_aiokafka_is_as_is_taken_for_granted() -> None:
    """Its private classes may change with every release."""
    assert "MemoryRecords" in Fetcher._proc_fetch_request.__code__.co_names, OTHERWISE
    data = batch("lz4", b"value")
    assert vars(_MemoryRecordsPy(data)).get("_next_slice") == data, OTHERWISE
    assert hasattr(_MemoryRecordsPy, "_cache_next"), OTHERWISE
    codecs = {
        name: getattr(_DefaultRecordBatchPy, f"CODEC_{name.upper()}", None) for name in CODECS
    }
    assert codecs == CODECS, OTHERWISE
    assert hasattr(_DefaultRecordBatchPy, "HEADER_STRUCT"), OTHERWISE
    one = _DefaultRecordBatchPy(data)
    assert vars(one).get("_buffer") == data, OTHERWISE
    assert hasattr(one, "_maybe_uncompress"), OTHERWISE
    one._maybe_uncompress()
    assert b"value" in one._buffer, OTHERWISE


@pytest.mark.parametrize("codec", CODECS)
def test_a_header_that_is_no_text_costs_no_record(
    codec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As aiokafka's fetcher reads the broker's answer."""
    monkeypatch.setattr(aiokafka.consumer.fetcher, "MemoryRecords", _MemoryRecordsPy)
    records.install()
    values = [b"first", b"last"]
    answer = aiokafka.consumer.fetcher.MemoryRecords(batch(codec, *values, name=NoText("name")))
    place = TopicPartition("topic", 0)
    found = PartitionRecords(place, answer, [], 0, None, None, True, READ_COMMITTED)
    assert [record.value for record in found] == values, OTHERWISE


def test_a_consumer_does_not_start_on_another_aiokafka(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(aiokafka.consumer.fetcher, "MemoryRecords")
    with pytest.raises(ImportError, match="reads batches in a way"):
        records.install()

"""The parts of LLM routing that need no server: breaker, cache key, settings."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from prime_spark.config import ConfigError, credentials_of, decode_config
from prime_spark.events import Inference, encode
from prime_spark.llm.breaker import Breaker
from prime_spark.llm.cache import ResponseCache
from prime_spark.llm.metrics import LLMMetrics
from prime_spark.llm.router import _event, _Journey
from prime_spark.llm.settings import BackendConfig, CacheConfig, LLMConfig
from prime_spark.llm.types import GenerateRequest, GenerateResult

EDGE = {"name": "edge-1", "source": "edge", "url": "http://10.8.0.3:8080"}


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def entered(breaker: Breaker) -> int:
    call = breaker.enter()
    assert call is not None
    return call


def broken(clock: Clock, failures: int = 3) -> Breaker:
    breaker = Breaker(failures, 30, clock)
    for _ in range(failures):
        breaker.failed(entered(breaker))
    return breaker


def test_breaker_opens_after_failures_in_a_row_only() -> None:
    breaker = Breaker(3, 30, Clock())
    for outcome in (breaker.failed, breaker.failed, breaker.succeeded, breaker.failed):
        outcome(entered(breaker))
    assert breaker.state == "closed"
    for _ in range(2):
        breaker.failed(entered(breaker))
    assert (breaker.state, breaker.enter()) == ("open", None)
    assert "circuit open for 30 s" in breaker.refusal()


def test_breaker_tries_one_call_after_its_time() -> None:
    clock = Clock()
    breaker = broken(clock)
    clock.now += 29.9
    assert not breaker.enter()
    clock.now += 0.1
    assert breaker.state == "half-open"
    trial = entered(breaker)
    assert not breaker.enter()  # one at a time
    breaker.succeeded(trial)
    assert breaker.state == "closed"
    assert breaker.enter()


def test_breaker_opens_again_when_the_trial_fails() -> None:
    clock = Clock()
    breaker = broken(clock)
    clock.now += 30
    breaker.failed(entered(breaker))
    assert (breaker.state, breaker.enter()) == ("open", None)


def test_a_forgotten_trial_makes_room_for_the_next() -> None:
    clock = Clock()
    breaker = broken(clock)
    clock.now += 30
    breaker.forget(entered(breaker))
    assert breaker.enter()


@pytest.mark.parametrize("outcome", ["succeeded", "failed", "forget"])
def test_a_call_from_before_decides_nothing(outcome: str) -> None:
    clock = Clock()
    breaker = Breaker(1, 30, clock)
    stale = entered(breaker)
    breaker.failed(entered(breaker))
    getattr(breaker, outcome)(stale)
    assert breaker.state == "open"
    clock.now += 30
    trial = entered(breaker)
    getattr(breaker, outcome)(stale)
    assert breaker.state == "half-open"
    assert not breaker.enter(), "the trial is still under way"
    breaker.succeeded(trial)
    assert breaker.state == "closed"
    getattr(breaker, outcome)(stale)
    assert breaker.state == "closed"


def cache(*backends: dict[str, Any]) -> ResponseCache:
    configured = [msgspec.convert(backend, BackendConfig) for backend in backends or (EDGE,)]
    metrics = LLMMetrics(CollectorRegistry())
    return ResponseCache(Redis(), CacheConfig(), configured, metrics)  # never connected


# For every field a value other than its default.
OTHER: dict[str, Any] = {
    "prompt": "other",
    "system": "be brief",
    "model": "llama3.2:3b",
    "max_tokens": 7,
    "temperature": 0.0,
    "top_p": 0.5,
    "presence_penalty": 0.5,
    "frequency_penalty": 0.5,
    "seed": 1,
    "stop": ["."],
    "use_cache": False,
}


def test_every_field_of_a_request_is_in_the_cache_key() -> None:
    assert set(OTHER) == set(GenerateRequest.__struct_fields__)
    base = GenerateRequest(prompt="hello")
    keys = {cache().key(base)}
    for name, value in OTHER.items():
        keys.add(cache().key(msgspec.structs.replace(base, **{name: value})))
    assert len(keys) == len(OTHER)  # all but use_cache make a difference


@settings(max_examples=25, deadline=None)
@given(st.text(min_size=1), st.text(min_size=1))
def test_texts_do_not_run_together_in_the_cache_key(left: str, right: str) -> None:
    one = GenerateRequest(prompt=left, system=right)
    other = GenerateRequest(prompt=left + right)
    assert cache().key(one) != cache().key(other)


def test_the_cache_key_tells_servers_and_default_models_apart() -> None:
    request = GenerateRequest(prompt="hello")
    keys = {
        cache().key(request),
        cache({**EDGE, "model": "small"}).key(request),
        cache({**EDGE, "url": "http://10.8.0.4:8080"}).key(request),
    }
    assert len(keys) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"url": "ftp://host"}, "url"),
        ({"url": "http://user:secret@host"}, "url"),
        ({"source": "moon"}, "source"),
        ({"concurrency": 0}, "concurrency"),
        ({"timeout": 3}, "did you mean `timeout_seconds`"),
    ],
)
def test_bad_backends_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        decode_config(msgspec.json.encode({"backends": [{**EDGE, **change}]}), LLMConfig)


def test_backends_need_names_of_their_own() -> None:
    with pytest.raises(ConfigError, match="edge-1 is used twice"):
        decode_config(msgspec.json.encode({"backends": [EDGE, EDGE]}), LLMConfig)


def test_credentials_of_backends_are_found_where_there_are_any() -> None:
    backends = [EDGE, {**EDGE, "name": "cloud-1", "credential": "llm_cloud_key"}]
    config = decode_config(msgspec.json.encode({"backends": backends}), LLMConfig)
    assert credentials_of(config) == {"llm_cloud_key"}


@pytest.mark.parametrize("model", ["llama3.2:3b", "/models/a b.gguf", "../x", "é", "m" * 300])
def test_any_name_of_a_model_makes_a_valid_event(model: str) -> None:
    result = GenerateResult(
        text="x",
        model=model,
        source="cloud",
        backend="cloud-1",
        input_tokens=1,
        output_tokens=None,
        finish_reason=None,
        latency_ms=1.5,
    )
    event = _event(_Journey(GenerateRequest(prompt="p"), streamed=False), result, 1)
    assert msgspec.json.decode(encode(event), type=Inference).source == "cloud"

"""Routing against real llama-servers: plain and streamed answers, fallback, breaker, limits."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path

import pytest
from llm_support import (
    STREAM,
    backend,
    down,
    event,
    http,
    paused,
    routed,
    run,
    scripted,
    write_credentials,
)
from tests.integration.servers import LlamaServer, RedisServer, llama_server, redis_server

from prime_spark.events import encode
from prime_spark.llm.router import LLMRouter
from prime_spark.llm.types import (
    Chunk,
    GenerateRequest,
    LLMInterruptedError,
    LLMRejectedError,
    LLMUnavailableError,
)

HELLO = GenerateRequest(prompt="hello spark", max_tokens=8, seed=1, temperature=0.7)
LONG = GenerateRequest(prompt="hello", max_tokens=800, seed=1)


@pytest.fixture(scope="module")
def edge() -> Iterator[LlamaServer]:
    with llama_server() as server:
        yield server


@pytest.fixture(scope="module")
def cloud() -> Iterator[LlamaServer]:
    with llama_server({"alias": "cloud-model"}) as server:
        yield server


@pytest.fixture(scope="module")
def cache() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest.fixture(autouse=True)
def credentials(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    edge: LlamaServer,
    cloud: LlamaServer,
    cache: RedisServer,
) -> None:
    keys = {"edge": edge.api_key, "cloud": cloud.api_key, "redis": cache.password, "wrong": "x"}
    write_credentials(tmp_path, keys)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))


async def collect(router: LLMRouter, request: GenerateRequest) -> list[Chunk]:
    async with aclosing(router.stream(request)) as chunks:
        return [chunk async for chunk in chunks]


def test_the_edge_answers_with_its_own_token_counts(edge: LlamaServer, cloud: LlamaServer) -> None:
    async def go() -> None:
        async with routed(backend(edge, "edge"), backend(cloud, "cloud")) as router:
            result = await router.generate(HELLO)
            assert (result.source, result.backend, result.model) == ("edge", "edge", edge.model)
            assert result.output_tokens == 8
            # One token per byte and word: far from the number of characters or of words.
            assert result.input_tokens not in {None, len(HELLO.prompt), len(HELLO.prompt.split())}
            assert result.finish_reason == "length"
            assert len(result.text.split()) >= 4
            (recorded,) = router.events
            assert encode(recorded)
            assert (recorded.source, recorded.model_name) == ("edge", edge.model)
            assert (recorded.input_tokens, recorded.output_tokens) == (
                result.input_tokens,
                result.output_tokens,
            )
            assert recorded.metadata["route"] == "edge"
            assert recorded.prompt_chars == len(HELLO.prompt)
            assert router.counted("tokens_total", backend="edge", direction="output") == 8

    run(go())


def test_sampling_fields_reach_the_server(edge: LlamaServer) -> None:
    async def go() -> None:
        async with routed(backend(edge, "edge")) as router:

            async def text(**changes: object) -> str:
                fields = {"prompt": "hello", "max_tokens": 24, "temperature": 1.5, **changes}
                return (await router.generate(GenerateRequest(**fields))).text  # type: ignore[arg-type]

            assert await text(seed=3) == await text(seed=3)
            assert await text(seed=3) != await text(seed=4)
            word = (await text(seed=3)).split()[-1]
            assert word not in await text(seed=3, stop=[f" {word}"])
            assert await text(seed=5, temperature=0.0) == await text(seed=6, temperature=0.0)
            greedy = await text(temperature=0.0)
            assert greedy != await text(temperature=0.0, system="speak of clouds")

    run(go())


def test_streams_piece_by_piece(edge: LlamaServer) -> None:
    async def go() -> None:
        async with routed(backend(edge, "edge")) as router:
            *pieces, last = await collect(router, HELLO)
            assert len(pieces) == 8
            assert last.result is not None
            assert "".join(piece.text for piece in pieces) == last.result.text
            assert (last.text, last.result.output_tokens, last.result.source) == ("", 8, "edge")
            assert router.events[0].metadata["streamed"] is True
            assert router.events[0].output_tokens == 8

    run(go())


@pytest.mark.parametrize("streamed", [False, True])
def test_the_cloud_answers_while_the_edge_is_down(
    edge: LlamaServer, cloud: LlamaServer, streamed: bool
) -> None:
    async def go() -> None:
        async with routed(backend(edge, "edge"), backend(cloud, "cloud")) as router:
            if streamed:
                result = (await collect(router, HELLO))[-1].result
            else:
                result = await router.generate(HELLO)
            assert result is not None
            assert (result.source, result.backend, result.model) == (
                "cloud",
                "cloud",
                "cloud-model",
            )
            assert router.events[0].source == "cloud"
            assert router.events[0].metadata["route"] == "edge failed, cloud"

    with down(edge):
        run(go())


@pytest.mark.parametrize("streamed", [False, True])
def test_the_cloud_answers_when_the_edge_is_too_slow(
    edge: LlamaServer, cloud: LlamaServer, streamed: bool
) -> None:
    async def go() -> None:
        slow = backend(edge, "edge", timeout_seconds=0.5)
        async with routed(slow, backend(cloud, "cloud")) as router:
            started = time.monotonic()
            if streamed:
                result = (await collect(router, HELLO))[-1].result
            else:
                result = await router.generate(HELLO)
            assert result is not None
            assert result.source == "cloud"
            assert 0.5 <= time.monotonic() - started < 30

    with paused(edge):
        run(go())


def test_the_cloud_takes_over_a_stream_that_breaks_before_its_first_piece(
    edge: LlamaServer, cloud: LlamaServer
) -> None:
    async def go() -> None:
        async with routed(backend(edge, "edge"), backend(cloud, "cloud")) as router:
            streaming = asyncio.create_task(collect(router, HELLO))
            while not router.running():
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.2)  # connected, the request sent, nothing answered
            await asyncio.to_thread(edge.kill)
            *pieces, last = await streaming
            assert pieces
            assert last.result is not None
            assert last.result.source == "cloud"

    with down(edge):
        edge.start()
        edge.pause()
        run(go())


def test_a_stream_that_breaks_later_says_so(edge: LlamaServer, cloud: LlamaServer) -> None:
    async def go() -> None:
        async with routed(backend(edge, "edge"), backend(cloud, "cloud")) as router:
            async with aclosing(router.stream(LONG)) as chunks:
                for _ in range(3):
                    await anext(chunks)
                await asyncio.to_thread(edge.kill)
                with pytest.raises(LLMInterruptedError, match="the answer of edge broke off"):
                    [_ async for _ in chunks]
            (recorded,) = router.events
            assert recorded.metadata["finish_reason"] == "interrupted"
            assert recorded.source == "edge"
            assert recorded.response_chars

    with down(edge):
        edge.start()
        run(go())


def test_a_stream_nobody_listens_to_frees_its_place(edge: LlamaServer) -> None:
    async def go() -> None:
        only = backend(edge, "edge", concurrency=1, queue_seconds=0)
        async with routed(only) as router:
            async with aclosing(router.stream(LONG)) as chunks:
                await anext(chunks)
            assert router.running() == 0
            assert (await router.generate(HELLO)).source == "edge"
            assert [item.metadata["finish_reason"] for item in router.events] == [
                "interrupted",
                "length",
            ]
            assert (await router.health())[0].circuit == "closed"

    run(go())


@pytest.mark.parametrize("streamed", [False, True])
def test_both_down_names_both_reasons(
    edge: LlamaServer, cloud: LlamaServer, streamed: bool
) -> None:
    async def go() -> None:
        slow = backend(cloud, "cloud", timeout_seconds=0.3)
        async with routed(backend(edge, "edge"), slow) as router:
            with pytest.raises(LLMUnavailableError) as failure:
                await (collect(router, HELLO) if streamed else router.generate(HELLO))
            reasons = failure.value.reasons
            assert set(reasons) == {"edge", "cloud"}
            assert "cannot connect" in reasons["edge"]
            assert "within 0.3 s" in reasons["cloud"]
            assert "edge: cannot connect" in str(failure.value)
            assert router.events == []
            assert router.counted("requests_total", source="none", outcome="unavailable") == 1

    with down(edge), paused(cloud):
        run(go())


def test_the_circuit_opens_and_closes(edge: LlamaServer, cloud: LlamaServer) -> None:
    async def go() -> None:
        fragile = backend(
            edge, "edge", timeout_seconds=0.4, breaker={"failures": 2, "open_seconds": 1.0}
        )
        async with routed(fragile, backend(cloud, "cloud")) as router:
            for _ in range(2):
                assert (await router.generate(HELLO)).source == "cloud"
            assert (await router.health())[0].circuit == "open"
            assert router.counted("circuit_open", backend="edge") == 1
            # Circuit open: the next answer does not wait for the edge at all.
            assert (await router.generate(HELLO)).source == "cloud"
            assert router.counted("attempts_total", backend="edge", outcome="failed") == 2
            assert router.events[-1].metadata["route"] == "edge skipped, cloud"
            edge.resume()
            deadline = time.monotonic() + 30
            while (await router.generate(HELLO)).source != "edge":
                assert time.monotonic() < deadline, "the circuit did not close"
                await asyncio.sleep(0.1)
            await asyncio.sleep(0.2)  # the list of models is that old at most
            health = (await router.health())[0]
            assert (health.circuit, health.ok) == ("closed", True)
            assert router.counted("circuit_open", backend="edge") == 0

    with paused(edge):
        run(go())


def test_requests_beyond_the_limit_go_to_the_next_backend(
    edge: LlamaServer, cloud: LlamaServer
) -> None:
    async def go() -> None:
        narrow = backend(edge, "edge", concurrency=1, queue_seconds=0.2)
        async with routed(narrow, backend(cloud, "cloud", concurrency=8)) as router:
            first = asyncio.create_task(router.generate(HELLO))
            while not router.running():
                await asyncio.sleep(0.01)
            others = await asyncio.gather(*(router.generate(HELLO) for _ in range(4)))
            assert [result.source for result in others] == ["cloud"] * 4
            edge.resume()
            assert (await first).source == "edge"
            # Being busy is no failure.
            assert (await router.health())[0].circuit == "closed"

    with paused(edge):
        run(go())


def test_waits_for_a_place_before_it_gives_up(edge: LlamaServer) -> None:
    async def go() -> None:
        narrow = backend(edge, "edge", concurrency=1, queue_seconds=20)
        async with routed(narrow) as router:
            results = await asyncio.gather(*(router.generate(HELLO) for _ in range(5)))
            assert {result.source for result in results} == {"edge"}

    run(go())


def test_a_refused_request_is_not_the_backends_fault(edge: LlamaServer, cloud: LlamaServer) -> None:
    async def go() -> None:
        fragile = {"breaker": {"failures": 1, "open_seconds": 60}}
        async with routed(
            backend(edge, "edge", **fragile), backend(cloud, "cloud", **fragile)
        ) as router:
            with pytest.raises(LLMRejectedError) as failure:
                await router.generate(GenerateRequest(prompt="x" * 9000))
            assert "exceeds the available context size" in failure.value.reasons["edge"]
            assert {item.circuit for item in await router.health()} == {"closed"}
            assert (await router.generate(HELLO)).source == "edge"

    run(go())


def test_a_wrong_credential_is(edge: LlamaServer, cloud: LlamaServer) -> None:
    async def go() -> None:
        wrong = {**backend(edge, "edge"), "credential": "wrong"}
        async with routed(wrong, backend(cloud, "cloud")) as router:
            assert (await router.generate(HELLO)).source == "cloud"
            assert router.counted("attempts_total", backend="edge", outcome="failed") == 1

    run(go())


def test_models_are_merged_and_decide_the_route(edge: LlamaServer, cloud: LlamaServer) -> None:
    async def go() -> None:
        third = {**backend(edge, "edge"), "name": "third"}
        async with routed(backend(edge, "edge"), backend(cloud, "cloud"), third) as router:
            models = {model.id: (model.backends, model.sources) for model in await router.models()}
            assert models == {
                edge.model: (["edge", "third"], ["edge"]),
                "cloud-model": (["cloud"], ["cloud"]),
            }
            named = GenerateRequest(prompt="hello", max_tokens=2, model="cloud-model")
            assert (await router.generate(named)).source == "cloud"
            unknown = GenerateRequest(prompt="hello", max_tokens=2, model="gpt-9")
            with pytest.raises(LLMRejectedError, match="edge: has no model 'gpt-9'"):
                await router.generate(unknown)

    run(go())


def test_models_of_those_that_answer(edge: LlamaServer, cloud: LlamaServer) -> None:
    async def go() -> None:
        async with routed(backend(edge, "edge"), backend(cloud, "cloud")) as router:
            assert [model.id for model in await router.models()] == ["cloud-model"]
            edge_health, cloud_health = await router.health()
            assert (edge_health.ok, cloud_health.ok) == (False, True)
            assert "cannot connect" in edge_health.detail
            await asyncio.to_thread(cloud.kill)
            await asyncio.sleep(0.25)
            with pytest.raises(LLMUnavailableError, match=r"edge: .*; cloud: "):
                await router.models()

    with down(edge), down(cloud):
        cloud.start()
        run(go())


# -- the cache ------------------------------------------------------------------------------------


@pytest.mark.parametrize("streamed", [False, True])
def test_the_same_request_is_answered_from_the_cache(
    edge: LlamaServer, cache: RedisServer, streamed: bool
) -> None:
    request = GenerateRequest(prompt=f"cached {streamed}", max_tokens=6)

    async def go() -> None:
        async with routed(backend(edge, "edge"), redis=cache) as router:
            first = await router.generate(request)
            assert first.source == "edge"
            if streamed:
                piece, last = await collect(router, request)
                again = last.result
                assert piece.text == first.text
            else:
                again = await router.generate(request)
            assert again is not None
            assert (again.source, again.backend, again.text) == ("cache", "edge", first.text)
            assert (again.model, again.output_tokens) == (first.model, first.output_tokens)
            assert [item.source for item in router.events] == ["edge", "cache"]
            fresh = GenerateRequest(prompt=request.prompt, max_tokens=6, use_cache=False)
            assert (await router.generate(fresh)).source == "edge"
            warmer = GenerateRequest(prompt=request.prompt, max_tokens=6, temperature=1.9)
            assert (await router.generate(warmer)).source == "edge"

    run(go())


def test_a_streamed_answer_is_kept_too(edge: LlamaServer, cache: RedisServer) -> None:
    request = GenerateRequest(prompt="kept stream", max_tokens=6)

    async def go() -> None:
        async with routed(backend(edge, "edge"), redis=cache) as router:
            last = (await collect(router, request))[-1].result
            assert last is not None
            again = await router.generate(request)
            assert (again.source, again.text) == ("cache", last.text)

    run(go())


def test_the_cache_answers_while_every_server_is_down(
    edge: LlamaServer, cache: RedisServer
) -> None:
    request = GenerateRequest(prompt="offline", max_tokens=6)

    async def go() -> None:
        async with routed(backend(edge, "edge"), redis=cache) as router:
            await router.generate(request)
            await asyncio.to_thread(edge.kill)
            assert (await router.generate(request)).source == "cache"

    with down(edge):
        edge.start()
        run(go())


def test_cached_answers_expire(edge: LlamaServer, cache: RedisServer) -> None:
    async def go() -> None:
        async with routed(backend(edge, "edge"), redis=cache) as router:
            assert router.redis is not None
            await router.redis.flushall()
            await router.generate(HELLO)
            (key,) = await router.redis.keys("llm:cache:[^.]*")
            assert key.startswith(b"llm:cache:")
            assert 0 < await router.redis.ttl(key) <= 3600

    run(go())


def test_nothing_fails_without_redis(edge: LlamaServer, cache: RedisServer) -> None:
    async def go() -> None:
        async with routed(backend(edge, "edge"), redis=cache) as router:
            for _ in range(2):
                assert (await router.generate(HELLO)).source == "edge"
            assert router.counted("cache_total", outcome="error") == 1  # then in cooldown

    cache.kill()
    try:
        run(go())
    finally:
        cache.start()


# -- servers that misbehave in ways llama-server does not -----------------------------------------


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (http("200 OK", b"<html>"), "not what the API says"),
        (http("200 OK", b'{"choices": []}'), "no choices"),
        (http("200 OK", b'{"choices": [', length=500), "connection broke"),
        (http("500 Oops", b"out of memory"), r"failed \(500\): out of memory"),
        (http("200 OK", b'{"error": {"message": "no GPU"}}'), "failed: no GPU"),
        (http("302 Found\r\nLocation: http://127.0.0.1:1/", b""), "failed .302."),
    ],
)
def test_what_is_no_answer_counts_as_failure(edge: LlamaServer, answer: bytes, reason: str) -> None:
    async def go() -> None:
        async with scripted(answer, None) as url:
            stub = {"name": "stub", "source": "edge", "url": url}
            async with routed(stub) as router:
                with pytest.raises(LLMUnavailableError, match=reason):
                    await router.generate(HELLO)
                assert router.counted("attempts_total", backend="stub", outcome="failed") == 1

    run(go())


def test_a_busy_answer_does_not_open_the_circuit(edge: LlamaServer) -> None:
    async def go() -> None:
        async with scripted(http("429 Too Many", b'{"error": "rate limit"}'), None) as url:
            stub = {"name": "stub", "source": "edge", "url": url, "breaker": {"failures": 1}}
            async with routed(stub, {**backend(edge, "edge")}) as router:
                for _ in range(3):
                    assert (await router.generate(HELLO)).backend == "edge"
                assert (await router.health())[0].circuit == "closed"
                assert router.counted("attempts_total", backend="stub", outcome="skipped") == 3

    run(go())


@pytest.mark.parametrize(
    ("pieces", "reason"),
    [
        ((STREAM, event("a"), None), "ended early"),
        ((STREAM, event("a"), b'data: {"error": {"message": "slot lost"}}\n\n', None), "slot lost"),
        ((STREAM, event("a"), b"data: nonsense\n\n", None), "not what the API says"),
        ((STREAM, event("a"), 0.3, b": still here\n\n", 0.3, b": yes\n\n", 5.0), "within 0.5 s"),
    ],
)
def test_a_stream_that_goes_wrong(pieces: tuple[bytes, ...], reason: str) -> None:
    async def go() -> None:
        async with scripted(*pieces) as url:
            stub = {"name": "stub", "source": "edge", "url": url, "timeout_seconds": 0.5}
            async with routed(stub) as router:
                with pytest.raises(LLMInterruptedError, match=reason):
                    await collect(router, HELLO)

    run(go())


def test_a_piece_is_passed_on_while_the_next_is_being_made() -> None:
    async def go() -> None:
        async with scripted(STREAM, event("a"), 50.0) as url:
            stub = {"name": "stub", "source": "edge", "url": url}
            async with routed(stub) as router, aclosing(router.stream(HELLO)) as chunks:
                first = await asyncio.wait_for(anext(chunks), 20)
                assert first.text == "a"

    run(go())


def test_a_stream_without_end_is_cut_off() -> None:
    async def go() -> None:
        dribble = [piece for _ in range(50) for piece in (event("a"), 0.1)]
        async with scripted(STREAM, *dribble) as url:
            stub = {"name": "stub", "source": "edge", "url": url, "stream_seconds": 0.6}
            async with routed(stub) as router:
                with pytest.raises(LLMInterruptedError, match=r"did not end within 0\.6 s"):
                    await collect(router, HELLO)

    run(go())


def test_events_may_be_cut_anywhere() -> None:
    whole = event("one ") + event("two") + event(finish="stop") + b"data: [DONE]\n\n"
    crlf = whole.replace(b"\n", b"\r\n")
    pieces = [part for byte in crlf for part in (bytes([byte]), 0.0)]

    async def go() -> None:
        async with (
            scripted(STREAM, *pieces, None) as url,
            routed({"name": "stub", "source": "cloud", "url": url}) as router,
        ):
            *texts, last = await collect(router, HELLO)
            assert [chunk.text for chunk in texts] == ["one ", "two"]
            assert last.result is not None
            assert (last.result.text, last.result.input_tokens) == ("one two", None)

    run(go())

"""llama-server answers with its self-test model, wants its key, and can be paused."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from tests.integration.servers import LlamaServer, llama_server


@pytest.fixture(scope="module")
def server() -> Iterator[LlamaServer]:
    with llama_server() as running:
        yield running


def call(server: LlamaServer, path: str, body: Any = None, timeout: float = 10) -> Any:
    headers = {"Authorization": f"Bearer {server.api_key}", "Content-Type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(server.url + path, data, headers)
    with urllib.request.urlopen(request, timeout=timeout) as answer:
        return json.load(answer)


def chat(server: LlamaServer, tokens: int = 6, timeout: float = 10) -> Any:
    messages = [{"role": "user", "content": "hello"}]
    body = {"messages": messages, "max_tokens": tokens, "seed": 1}
    return call(server, "/v1/chat/completions", body, timeout)


def test_the_model_is_labelled_as_what_it_is(server: LlamaServer) -> None:
    (model,) = call(server, "/v1/models")["data"]
    assert model["id"] == "prime-spark-self-test"


def test_answers_in_words_as_long_as_asked_for(server: LlamaServer) -> None:
    answer = chat(server, tokens=9)
    assert answer["usage"]["completion_tokens"] == 9
    text = answer["choices"][0]["message"]["content"]
    assert len(text.split()) == 9
    assert text.isascii()
    assert answer["choices"][0]["finish_reason"] == "length"


def test_refuses_without_the_key(server: LlamaServer) -> None:
    with pytest.raises(urllib.error.HTTPError) as refusal:
        urllib.request.urlopen(f"{server.url}/v1/chat/completions", b"{}", timeout=10)
    assert refusal.value.code == 401


def test_a_paused_server_answers_once_it_goes_on(server: LlamaServer) -> None:
    server.pause()
    try:
        with pytest.raises(TimeoutError):
            chat(server, timeout=0.5)
    finally:
        server.resume()
    assert chat(server)["choices"]

"""What a URL given by somebody else may and may not make the agent do."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from prime_spark.agent.addresses import refusal
from prime_spark.agent.errors import TaskFailedError
from prime_spark.agent.fetch import AudioFetcher
from prime_spark.agent.settings import AudioConfig

Answer = bytes | Callable[[bytes], bytes]


def config(**values: Any) -> AudioConfig:
    return msgspec.convert({"schemes": ["https", "http"], **values}, AudioConfig)


def fetch(url: str, **values: Any) -> bytes:
    async def go() -> bytes:
        fetcher = AudioFetcher(config(**values))
        try:
            return await fetcher.fetch(url)
        finally:
            await fetcher.close()

    return asyncio.run(asyncio.wait_for(go(), 20))


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[list[str]]]:
    """Host name to the addresses that each look-up in turn gives; the last stays."""
    answers: dict[str, list[list[str]]] = {}
    real = socket.getaddrinfo

    def resolve(host: str, port: int, *arguments: Any, **more: Any) -> Any:
        if host not in answers:
            return real(host, port, *arguments, **more)
        addresses = answers[host].pop(0) if len(answers[host]) > 1 else answers[host][0]
        return [
            (
                socket.AF_INET6 if ":" in text else socket.AF_INET,
                socket.SOCK_STREAM,
                6,
                "",
                (text, port),
            )
            for text in addresses
        ]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    return answers


@asynccontextmanager
async def server(answer: Answer, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[Any]:
    """An HTTP server that answers every request alike; yields its port and the heads it saw."""
    heads: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        heads.append(head)
        try:
            writer.write(answer(head) if callable(answer) else answer)
            await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()

    listening = await asyncio.start_server(serve, host, port)
    try:
        yield listening.sockets[0].getsockname()[1], heads
    finally:
        listening.close()


def ok(body: bytes, headers: str = "") -> bytes:
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n{headers}Connection: close\r\n\r\n"
    return head.encode() + body


def redirect(location: str) -> bytes:
    head = f"HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n"
    return head.encode()


# -- refused without a single packet --------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("file:///etc/passwd", "scheme 'file'"),
        ("ftp://audio.test/a.wav", "scheme 'ftp'"),
        ("gopher://audio.test/", "scheme 'gopher'"),
        ("//audio.test/a.wav", "scheme 'none'"),
        ("/etc/passwd", "scheme 'none'"),
        ("https://", "names no host"),
        ("https://user:secret@audio.test/a.wav", "user names"),
        ("https://audio.test\\@evil.test/a.wav", "not allowed|backslash"),
        ("https://evil.test/a.wav", "evil.test:443 is not one"),
        ("https://audio.test.evil.test/a.wav", "is not one"),
        ("https://evilaudio.test/a.wav", "is not one"),
        ("https://audio.test:22/a.wav", "audio.test:22 is not one"),
        ("https://audio.test:99999/a.wav", "[Pp]ort"),
        ("https://audio.test/a b.wav", "blanks"),
        ("https://audio.test/\r\nX: y", "blanks"),
        ("https://[::1/a.wav", "refused"),
        ("https://audio.test/" + "a" * 3000, "too long"),
    ],
)
def test_urls_that_are_refused(url: str, reason: str, names: dict[str, list[list[str]]]) -> None:
    names["audio.test"] = names["evil.test"] = [["198.51.100.77"]]
    with pytest.raises(TaskFailedError, match=reason) as failure:
        fetch(url, hosts=["audio.test"])
    assert "audio_url is refused" in str(failure.value)
    assert not failure.value.retryable


def test_no_host_is_allowed_unless_it_is_configured() -> None:
    with pytest.raises(TaskFailedError, match="is not one of those allowed"):
        fetch("https://audio.test/a.wav")


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.8.9.10",
        "::1",
        "0.0.0.0",
        "::",
        "10.0.0.1",
        "10.8.0.2",
        "172.16.0.1",
        "172.31.255.255",
        "192.168.1.49",
        "100.64.0.1",
        "169.254.169.254",
        "fe80::1",
        "fd00::1",
        "fec0::1",
        "192.0.2.1",
        "198.18.0.1",
        "224.0.0.1",
        "ff02::1",
        "240.0.0.1",
        "255.255.255.255",
        "::ffff:127.0.0.1",
        "::ffff:192.168.1.49",
        "::ffff:169.254.169.254",
        "::127.0.0.1",
        "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe",
        "2002:7f00:1::",
        "2001:0:7f00:1::",
    ],
)
def test_addresses_that_are_refused_under_an_allowed_name(
    address: str, names: dict[str, list[list[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def no_connection(*_: Any, **__: Any) -> Any:
        raise AssertionError("connected")

    names["audio.test"] = [[address]]
    monkeypatch.setattr(asyncio.BaseEventLoop, "create_connection", no_connection)
    with pytest.raises(TaskFailedError, match=r"audio_url is refused: audio\.test: ") as failure:
        fetch("http://audio.test/a.wav", hosts=["audio.test"])
    assert not failure.value.retryable


@pytest.mark.parametrize(
    "url", ["http://127.1/", "http://2130706433/", "http://0x7f.1/", "http://[::1]/"]
)
def test_spellings_of_loopback_are_refused_where_every_host_is_allowed(url: str) -> None:
    with pytest.raises(TaskFailedError, match="loopback"):
        fetch(url, hosts=["*"])


def test_one_bad_address_among_good_ones_is_enough(names: dict[str, list[list[str]]]) -> None:
    names["audio.test"] = [["198.51.100.77", "127.0.0.1"]]
    with pytest.raises(TaskFailedError, match=r"refused: audio\.test: "):
        fetch("http://audio.test/a.wav", hosts=["audio.test"], private_networks=["198.51.100.0/24"])


def test_link_local_stays_refused_in_an_allowed_network(names: dict[str, list[list[str]]]) -> None:
    names["audio.test"] = [["::ffff:169.254.1.1"]]
    with pytest.raises(TaskFailedError, match="link-local"):
        fetch("http://audio.test/", hosts=["audio.test"], private_networks=["192.168.0.0/16"])


@pytest.mark.parametrize("address", ["::ffff:10.1.2.3", "64:ff9b::a01:203", "::10.1.2.3"])
def test_an_address_is_checked_by_the_one_it_stands_for(address: str) -> None:
    allowed = [ipaddress.ip_network("10.0.0.0/8")]
    assert refusal(ipaddress.ip_address(address), allowed) == ""
    assert refusal(ipaddress.ip_address(address), []) == "10.1.2.3 is not a public address"


@pytest.mark.parametrize(
    "network",
    ["0.0.0.0/0", "8.8.8.0/24", "169.254.0.0/16", "fe80::/10", "224.0.0.0/4", "10.0.0.0/4"],
)
def test_networks_that_cannot_be_allowed(network: str) -> None:
    with pytest.raises(msgspec.ValidationError, match="private_networks"):
        config(private_networks=[network])


@pytest.mark.parametrize(
    "host", ["https://x", "a b", "*", "*.example.org", "nas:8080", "UPPER", "*x"]
)
def test_host_patterns_are_checked(host: str) -> None:
    good = host in {"*", "*.example.org", "nas:8080"}
    try:
        config(hosts=[host])
    except msgspec.ValidationError:
        assert not good
    else:
        assert good


@pytest.mark.parametrize(
    ("pattern", "url", "allowed"),
    [
        ("*.audio.test", "http://a.audio.test/", True),
        ("*.audio.test", "http://a.b.audio.test./", True),
        ("*.audio.test", "http://audio.test/", False),
        ("*.audio.test", "http://aaudio.test/", False),
        ("audio.test", "http://AUDIO.test:80/", True),
        ("audio.test:8080", "http://audio.test:8080/", True),
        ("audio.test:8080", "http://audio.test/", False),
        ("*", "https://anything.test/", True),
        ("*", "https://anything.test:8443/", False),
        ("[fd00::1]", "http://[fd00::1]/", True),
    ],
)
def test_host_patterns(pattern: str, url: str, allowed: bool) -> None:
    async def go() -> None:
        fetcher = AudioFetcher(config(hosts=[pattern]))
        try:
            assert fetcher.check(url)
        finally:
            await fetcher.close()

    if allowed:
        asyncio.run(go())
    else:
        with pytest.raises(TaskFailedError):
            asyncio.run(go())


# -- against a server on loopback, which is allowed there as 127.0.0.1/32 alone -------------------


def run_with(
    answer: Answer, check: Callable[[AudioFetcher, int, list[bytes]], Any], **more: Any
) -> None:
    async def go() -> None:
        async with server(answer) as (port, heads):
            fetcher = AudioFetcher(
                config(
                    hosts=[f"audio.test:{port}", f"127.0.0.2:{port}"],
                    private_networks=["127.0.0.1/32"],
                    **more,
                )
            )
            try:
                await check(fetcher, port, heads)
            finally:
                await fetcher.close()

    asyncio.run(asyncio.wait_for(go(), 20))


def test_fetches_what_is_allowed(names: dict[str, list[list[str]]]) -> None:
    names["audio.test"] = [["127.0.0.1"]]

    async def check(fetcher: AudioFetcher, port: int, heads: list[bytes]) -> None:
        assert await fetcher.fetch(f"http://audio.test:{port}/a/b.wav?x=1") == b"RIFF"
        head = heads[0].decode().lower()
        assert head.startswith("get /a/b.wav?x=1 http/1.1")
        assert f"host: audio.test:{port}\r\n" in head
        assert "accept-encoding: identity" in head
        assert "authorization" not in head

    run_with(ok(b"RIFF"), check)


def test_the_name_is_resolved_once_and_the_address_pinned(
    names: dict[str, list[list[str]]],
) -> None:
    """A name whose second look-up leads elsewhere (DNS rebinding) gets nowhere."""
    names["audio.test"] = [["127.0.0.1"], ["127.0.0.3"], ["127.0.0.3"]]

    async def check(fetcher: AudioFetcher, port: int, heads: list[bytes]) -> None:
        async with server(ok(b"secret"), "127.0.0.3", port) as (_, stolen):
            assert await fetcher.fetch(f"http://audio.test:{port}/") == b"RIFF"
            assert len(names["audio.test"]) == 2  # asked once
            assert (len(heads), len(stolen)) == (1, 0)

    run_with(ok(b"RIFF"), check)


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("http://127.0.0.2:{port}/x", "127.0.0.2 is a loopback address"),
        ("http://evil.test/x", "evil.test:80 is not one"),
        ("file:///etc/passwd", "scheme 'file'"),
        ("//169.254.169.254/latest/meta-data", "is not one"),
    ],
)
def test_redirects_are_checked_again(
    location: str, reason: str, names: dict[str, list[list[str]]]
) -> None:
    names["audio.test"] = [["127.0.0.1"]]
    target = location

    async def check(fetcher: AudioFetcher, port: int, heads: list[bytes]) -> None:
        nonlocal target
        target = location.format(port=port)
        with pytest.raises(TaskFailedError, match=reason):
            await fetcher.fetch(f"http://audio.test:{port}/")
        assert len(heads) == 1

    run_with(lambda _: redirect(target), check)


def test_a_redirect_to_another_path_is_followed(names: dict[str, list[list[str]]]) -> None:
    names["audio.test"] = [["127.0.0.1"]]

    def answer(head: bytes) -> bytes:
        return ok(b"RIFF") if b"GET /real" in head else redirect("/real.wav")

    async def check(fetcher: AudioFetcher, port: int, heads: list[bytes]) -> None:
        assert await fetcher.fetch(f"http://audio.test:{port}/") == b"RIFF"
        assert len(heads) == 2

    run_with(answer, check)


def test_redirects_end(names: dict[str, list[list[str]]]) -> None:
    names["audio.test"] = [["127.0.0.1"]]

    async def check(fetcher: AudioFetcher, port: int, heads: list[bytes]) -> None:
        with pytest.raises(TaskFailedError, match="more than 3 redirects"):
            await fetcher.fetch(f"http://audio.test:{port}/")
        assert len(heads) == 4

    run_with(redirect("/again"), check)


@pytest.mark.parametrize(
    "answer",
    [
        ok(b"x" * 1001),
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\nRIFF",
        b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + b"x" * 200_000,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"3e9\r\n" + b"x" * 1001 + b"\r\n0\r\n\r\n",
    ],
)
def test_what_is_too_large_is_refused(answer: bytes, names: dict[str, list[list[str]]]) -> None:
    names["audio.test"] = [["127.0.0.1"]]

    async def check(fetcher: AudioFetcher, port: int, heads: list[bytes]) -> None:
        with pytest.raises(TaskFailedError, match="more than the 1000") as failure:
            await fetcher.fetch(f"http://audio.test:{port}/")
        assert not failure.value.retryable

    run_with(answer, check, max_bytes=1000)


def test_as_large_as_allowed_is_taken(names: dict[str, list[list[str]]]) -> None:
    names["audio.test"] = [["127.0.0.1"]]

    async def check(fetcher: AudioFetcher, port: int, heads: list[bytes]) -> None:
        assert len(await fetcher.fetch(f"http://audio.test:{port}/")) == 1000

    run_with(ok(b"x" * 1000), check, max_bytes=1000)


@pytest.mark.parametrize(
    ("answer", "reason", "retryable"),
    [
        (ok(b"x", "Content-Encoding: gzip\r\n"), "compressed", False),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "answers 404", False),
        (b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n", "answers 503", True),
        (b"nonsense\r\n\r\n", "cannot be fetched", True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort", "cannot be fetched", True),
    ],
)
def test_other_answers(
    answer: bytes, reason: str, retryable: bool, names: dict[str, list[list[str]]]
) -> None:
    names["audio.test"] = [["127.0.0.1"]]

    async def check(fetcher: AudioFetcher, port: int, heads: list[bytes]) -> None:
        with pytest.raises(TaskFailedError, match=reason) as failure:
            await fetcher.fetch(f"http://audio.test:{port}/")
        assert failure.value.retryable == retryable

    run_with(answer, check)


def test_a_server_that_dribbles_is_given_up(names: dict[str, list[list[str]]]) -> None:
    names["audio.test"] = [["127.0.0.1"]]

    async def go() -> None:
        async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
            while not writer.is_closing():
                writer.write(b"x")
                await asyncio.sleep(0.05)

        listening = await asyncio.start_server(drip, "127.0.0.1", 0)
        port = listening.sockets[0].getsockname()[1]
        fetcher = AudioFetcher(
            config(
                hosts=[f"audio.test:{port}"],
                private_networks=["127.0.0.1/32"],
                timeout_seconds=0.5,
            )
        )
        with pytest.raises(TaskFailedError, match=r"not fetched within 0\.5 s"):
            await fetcher.fetch(f"http://audio.test:{port}/")
        await fetcher.close()
        listening.close()

    asyncio.run(asyncio.wait_for(go(), 20))

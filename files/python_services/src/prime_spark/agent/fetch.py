"""Fetches audio from a URL that somebody else chose, without becoming their way into the network.

The host has to be allowed, its name is resolved once, every address it has is checked, and the
connection goes to the address that was checked. Each redirect is treated as a new URL.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from dataclasses import dataclass
from urllib.parse import urljoin, urlsplit

import httpx

from prime_spark.agent.addresses import Address, refusal
from prime_spark.agent.errors import TaskFailedError
from prime_spark.agent.settings import AudioConfig
from prime_spark.runtime.threads import BoundedCalls

_PORTS = {"http": 80, "https": 443}
_REDIRECTS = {301, 302, 303, 307, 308}
_RESOLVE_SECONDS = 5.0
_MAX_RESOLVING = 4
_CONNECT_SECONDS = 5.0
_MAX_URL_CHARS = 2048


@dataclass(frozen=True)
class Target:
    """A URL taken apart, its host and scheme allowed."""

    url: str
    scheme: str
    host: str
    port: int
    path: str

    @property
    def authority(self) -> str:
        """The value of the Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"


class AudioFetcher:
    """Fetches what an `AudioConfig` allows. Close it at the end."""

    def __init__(self, config: AudioConfig) -> None:
        self._config = config
        self._networks = [ipaddress.ip_network(text) for text in config.private_networks]
        self._resolving = BoundedCalls("resolve", _MAX_RESOLVING, _RESOLVE_SECONDS)
        self._http = httpx.AsyncClient(
            # No connection is kept: the next URL's host is checked again.
            limits=httpx.Limits(max_keepalive_connections=0),
            timeout=httpx.Timeout(config.timeout_seconds, connect=_CONNECT_SECONDS),
            verify=ssl.create_default_context(),
            follow_redirects=False,
            trust_env=False,
        )

    async def close(self) -> None:
        """Close the client."""
        await self._http.aclose()

    async def fetch(self, url: str) -> bytes:
        """Return what is at `url`; raises TaskFailedError."""
        seconds = self._config.timeout_seconds
        try:
            async with asyncio.timeout(seconds):
                return await self._follow(url)
        except TimeoutError:
            raise TaskFailedError(f"audio_url: not fetched within {seconds:g} s") from None
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
            text = " ".join(str(error).split()) or type(error).__name__
            raise TaskFailedError(f"audio_url: cannot be fetched: {text}") from error

    async def _follow(self, url: str) -> bytes:
        for _ in range(self._config.max_redirects + 1):
            target = self.check(url)
            address = await self._address(target)
            answer = await self._get(target, address)
            if isinstance(answer, bytes):
                return answer
            url = urljoin(target.url, answer)
        raise _refused(f"more than {self._config.max_redirects} redirects")

    def check(self, url: str) -> Target:
        """Return the parts of `url`; raise TaskFailedError when its scheme or host is refused."""
        if len(url) > _MAX_URL_CHARS or any(not "!" <= character <= "~" for character in url):
            raise _refused("it is too long, or has blanks or other characters that URLs lack")
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise _refused(str(error)) from None
        if parts.scheme not in self._config.schemes:
            allowed = ", ".join(self._config.schemes)
            raise _refused(f"the scheme {parts.scheme or 'none'!r} is not allowed, only {allowed}")
        if parts.username is not None or parts.password is not None or "\\" in url:
            raise _refused("user names, passwords and backslashes are not allowed")
        host = (parts.hostname or "").rstrip(".")
        if not host:
            raise _refused("it names no host")
        port = port or _PORTS[parts.scheme]
        if not any(_matches(pattern, host, port, parts.scheme) for pattern in self._config.hosts):
            raise _refused(f"the host {host}:{port} is not one of those allowed")
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        return Target(url, parts.scheme, host, port, path)

    async def _address(self, target: Target) -> Address:
        """Resolve the host once and return its first address, all of them being allowed."""

        def resolve() -> list[Address]:
            found = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
            return [ipaddress.ip_address(entry[4][0]) for entry in found]

        try:
            addresses = await self._resolving.run(resolve)
        except (OSError, UnicodeError, ValueError) as error:
            raise TaskFailedError(f"audio_url: cannot resolve {target.host}: {error}") from error
        for address in addresses:
            if reason := refusal(address, self._networks):
                raise _refused(f"{target.host}: {reason}")
        if not addresses:
            raise TaskFailedError(f"audio_url: {target.host} has no address")
        return addresses[0]

    async def _get(self, target: Target, address: Address) -> bytes | str:
        """Return the body, or the address that it redirects to."""
        literal = f"[{address}]" if address.version == 6 else str(address)
        request = self._http.build_request(
            "GET",
            f"{target.scheme}://{literal}:{target.port}{target.path}",
            headers={"Host": target.authority, "Accept-Encoding": "identity"},
            # The certificate has to be the host's, not the address's.
            extensions={"sni_hostname": target.host} if target.scheme == "https" else {},
        )
        response = await self._http.send(request, stream=True)
        try:
            if response.status_code in _REDIRECTS and "location" in response.headers:
                return str(response.headers["location"])
            if response.status_code != httpx.codes.OK:
                raise TaskFailedError(
                    f"audio_url: {target.host} answers {response.status_code}",
                    retryable=response.status_code >= 500,
                )
            if response.headers.get("content-encoding", "identity") != "identity":
                raise _refused("the answer is compressed")
            return await self._read(response)
        finally:
            await response.aclose()

    async def _read(self, response: httpx.Response) -> bytes:
        limit = self._config.max_bytes
        declared = response.headers.get("content-length", "0")
        if declared.isdigit() and int(declared) > limit:
            raise _refused(f"{declared} bytes are more than the {limit} allowed")
        data = bytearray()
        async for piece in response.aiter_raw():
            data += piece
            if len(data) > limit:
                raise _refused(f"it has more than the {limit} bytes allowed")
        return bytes(data)


def _matches(pattern: str, host: str, port: int, scheme: str) -> bool:
    name, colon, wanted = pattern.rpartition(":")
    if not colon or not wanted.isdigit():
        name, wanted = pattern, str(_PORTS[scheme])
    if str(port) != wanted:
        return False
    name = name.strip("[]")
    if name == "*":
        return True
    return host.endswith(name[1:]) if name.startswith("*.") else host == name


def _refused(reason: str) -> TaskFailedError:
    return TaskFailedError(f"audio_url is refused: {reason}", retryable=False)

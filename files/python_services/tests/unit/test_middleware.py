"""Large bodies: from whom they are read, how many at a time, and how long one waits for a place."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import cast

import pytest

from prime_spark.accounts.users import Role
from prime_spark.api.auth.service import Caller
from prime_spark.api.authorization import allow_write
from prime_spark.api.dependencies import Services
from prime_spark.api.middleware import _LARGE_BYTES, Large, Middleware
from prime_spark.api.rate_limit import Rates
from prime_spark.api.settings import LimitsConfig
from prime_spark.runtime.asgi import Application, Message, Receive, Send

LARGE = 1024 * 1024
AT_ONCE = _LARGE_BYTES // LARGE


class Asking:
    """The middleware around `app`, its requests and answers. Tokens are names and roles."""

    def __init__(self, app: Application, **limits: str) -> None:
        services = SimpleNamespace(
            request_log=SimpleNamespace(add=lambda _: None, note=lambda _: None),
            auth=SimpleNamespace(recognise=_caller),
            rates=Rates(LimitsConfig(**limits)),
        )
        large = dict.fromkeys(("/slow", "/quick"), Large(LARGE, allow_write))
        self._middleware = Middleware(app, cast("Services", services), body_bytes=10, large=large)
        self.bodies_read = 0

    def __call__(self, path: str, who: str) -> asyncio.Future[list[Message]]:
        """Send a large body; the answer's messages."""
        return asyncio.ensure_future(self._ask(path, who))

    async def _ask(self, path: str, who: str) -> list[Message]:
        headers = [(b"content-length", b"%d" % LARGE), (b"authorization", f"Bearer {who}".encode())]
        # With `expect` a refusal waits for nothing of the body.
        headers.append((b"expect", b"100-continue"))
        scope = {
            "type": "http", "method": "POST", "path": path, "headers": headers, "client": None,
            "query_string": b"", "server": ("127.0.0.1", 80), "scheme": "http",
        }  # fmt: skip
        messages: list[Message] = []

        async def receive() -> Message:
            self.bodies_read += 1
            return {"type": "http.request"}

        async def send(message: Message) -> None:
            messages.append(message)

        await self._middleware(scope, receive, send)
        return messages


def _caller(token: str) -> Caller:
    name, _, role = token.partition("-")
    return Caller(role=cast("Role", role), password_hash="", name=name)


def test_answers_that_take_long_keep_nobody_from_another_path() -> None:
    async def go() -> None:
        asked: list[str] = []
        answered = asyncio.Event()

        async def app(scope: Message, _receive: Receive, _send: Send) -> None:
            asked.append(scope["path"])
            if scope["path"] == "/slow":
                await answered.wait()

        ask = Asking(app)
        slow = [ask("/slow", f"oscar{number % 3}-operator") for number in range(AT_ONCE + 1)]
        await asyncio.wait_for(ask("/quick", "oscar0-operator"), 20)
        assert asked.count("/slow") == AT_ONCE, "no more at a time"
        answered.set()
        await asyncio.gather(*slow)
        assert asked.count("/slow") == len(slow)

    asyncio.run(go())


def test_one_account_leaves_permits_to_the_others() -> None:
    async def go() -> None:
        answered = asyncio.Event()
        began: list[str] = []

        async def app(scope: Message, _receive: Receive, _send: Send) -> None:
            began.append(dict(scope["headers"])[b"authorization"].decode())
            if began[-1] == "Bearer mallory-operator":
                await answered.wait()

        ask = Asking(app)
        greedy = [ask("/slow", "mallory-operator") for _ in range(2 * AT_ONCE)]
        await asyncio.wait_for(ask("/slow", "oscar-operator"), 20)
        assert began.count("Bearer mallory-operator") == AT_ONCE // 2
        answered.set()
        await asyncio.gather(*greedy)
        assert began.count("Bearer mallory-operator") == 2 * AT_ONCE

    asyncio.run(go())


async def _never(_scope: Message, _receive: Receive, _send: Send) -> None:
    await asyncio.Event().wait()


def _answer(messages: list[Message]) -> tuple[int, dict[bytes, bytes], bytes]:
    start, *rest = messages
    return start["status"], dict(start["headers"]), b"".join(message["body"] for message in rest)


@pytest.mark.parametrize(("who", "status"), [("vera-viewer", 403), ("oscar-operator", 429)])
def test_whom_the_path_does_not_allow_takes_no_place(who: str, status: int) -> None:
    async def go() -> None:
        ask = Asking(_never, write="1/hour")
        if status == 429:
            ask._middleware._services.rates.check("write", "oscar")
        told, headers, body = _answer(await asyncio.wait_for(ask("/slow", who), 20))
        assert told == status, body
        assert headers[b"connection"] == b"close"
        assert ask.bodies_read == 0

    asyncio.run(go())


def test_nobody_waits_for_a_place_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prime_spark.api.middleware._PERMIT_SECONDS", 0.05)

    async def go() -> None:
        ask = Asking(_never)
        held = [ask("/slow", f"oscar{number}-operator") for number in range(AT_ONCE)]
        for account in ("oscar0", "another"):
            answer = await asyncio.wait_for(ask("/slow", f"{account}-operator"), 20)
            status, headers, body = _answer(answer)
            assert (status, b'"code": "unavailable"' in body) == (503, True)
            assert int(headers[b"retry-after"]) > 0
        for one in held:
            one.cancel()

    asyncio.run(go())

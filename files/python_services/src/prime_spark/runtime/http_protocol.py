"""uvicorn's protocol with limits of what a client may send before any of our code looks at it.

uvicorn's own options do not do: `h11_max_incomplete_event_size` is for its slower parser only, no
option limits how long a request may take to arrive, and `limit_concurrency` answers 503 to all
while idle connections, which it never ends before their first request, use the number up.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any, Literal

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 16 * 1024
MAX_HEAD_FIELDS = 64
MAX_CONNECTIONS = 512
# Clients that do not wait for answers are rare; each such request is kept until its turn.
_MAX_PIPELINED = 16
HEAD_SECONDS = 5.0
_BODY_SECONDS = 60.0
# For a client that does not take an answer which is larger than the buffers.
_ANSWER_SECONDS = 60.0


class LimitedProtocol(HttpToolsProtocol):
    """One connection, ended when its client sends too much, too slowly, or takes no answer.

    Beyond `MAX_CONNECTIONS` that connection is ended which has kept the server waiting longest for
    a request, and the new one only where all others are being answered.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._since = self.loop.time()
        self._status = HTTPStatus.BAD_REQUEST
        self._unfinished = 0
        self._waits_for = ""
        self._patience: asyncio.TimerHandle | None = None
        self._answering: asyncio.TimerHandle | None = None
        self._evicted = False

    # -- the transport ------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take the connection, at the cost of another one when there are too many."""
        super().connection_made(transport)
        self._be_patient(self._awaited)
        if len(self.connections) > MAX_CONNECTIONS:
            others = [
                connection
                for connection in self.connections
                if isinstance(connection, LimitedProtocol)
                and connection._awaited  # noqa: SLF001 (one of us)
                and not connection._evicted  # noqa: SLF001
            ]
            oldest = min(others, key=lambda connection: connection._since)  # noqa: SLF001
            oldest._evicted = True  # noqa: SLF001
            oldest.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        for timer in (self._patience, self._answering):
            if timer is not None:
                timer.cancel()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what has come, a little at a time, so that limits are looked at in between."""
        for start in range(0, len(data), MAX_HEAD_BYTES):
            piece = data[start : start + MAX_HEAD_BYTES]
            self._unfinished += len(piece)
            super().data_received(piece)
            if self.transport.is_closing():
                return
            if self._unfinished > MAX_HEAD_BYTES:
                self._status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
                self.send_400_response("")
                return
        self._be_patient(self._awaited)

    def pause_writing(self) -> None:
        """Wait for a client that takes no more, but not for ever."""
        super().pause_writing()
        if self._answering is None:
            self._answering = self.loop.call_later(_ANSWER_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """Go on writing."""
        if self._answering is not None:
            self._answering.cancel()
            self._answering = None
        super().resume_writing()

    # -- the parser ---------------------------------------------------------------------------

    def on_headers_complete(self) -> None:
        """Answer the request, or let it wait its turn."""
        if len(self.headers) > MAX_HEAD_FIELDS or self._head_is_too_large:
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        self._unfinished = 0
        self._be_patient("")
        if len(self.pipeline) >= _MAX_PIPELINED:
            self._refuse(HTTPStatus.BAD_REQUEST)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Take a part of the body."""
        self._unfinished = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request has come."""
        self._unfinished = 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """The request is answered."""
        self._since = self.loop.time()
        super().on_response_complete()
        if self._awaited == "body":  # of the request whose turn it is now
            self._be_patient("body")

    def send_400_response(self, msg: str) -> None:
        """Say what is wrong with the request, and hang up."""
        cycle = self.cycle
        if self.pipeline or (cycle and cycle.response_started and not cycle.response_complete):
            self.transport.abort()  # it would come in the middle of another answer
        elif self._status != HTTPStatus.BAD_REQUEST:
            text = self._status.phrase.encode()
            head = (
                f"HTTP/1.1 {self._status} {self._status.phrase}\r\ncontent-length: {len(text)}\r\n"
            )
            self.transport.write(head.encode() + b"connection: close\r\n\r\n" + text)
            self.transport.close()
        else:
            super().send_400_response(msg)

    # -- limits -------------------------------------------------------------------------------

    @property
    def _awaited(self) -> Literal["", "head", "body"]:
        """What the client has to send before anything else happens; nothing while it is answered.

        What it begins meanwhile may take its time: the answer is what holds the connection.
        """
        if self.pipeline:
            return ""
        if self.cycle is None or self.cycle.response_complete:
            return "head"
        return "body" if self.cycle.more_body else ""

    @property
    def _head_is_too_large(self) -> bool:
        # What came with the end of the head may be more than the head.
        return self._unfinished > MAX_HEAD_BYTES and (
            len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
            > MAX_HEAD_BYTES
        )

    def _refuse(self, status: HTTPStatus) -> None:
        """Make the parser give up, whereupon `send_400_response` is called."""
        self._status = status
        raise ValueError(status.phrase)

    def _be_patient(self, what: str) -> None:
        """See that what the client has to send does not take it too long."""
        if what == self._waits_for:
            return
        self._waits_for = what
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
        if what:
            seconds = HEAD_SECONDS if what == "head" else _BODY_SECONDS
            self._patience = self.loop.call_later(seconds, self.transport.abort)

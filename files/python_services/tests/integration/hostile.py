"""A hostile neighbour of a port: `python hostile.py [HOST:]PORT[/PATH] SECONDS ATTACK...`.

A process of its own, so that it shares no interpreter with whoever measures good requests. Bodies
go to PATH. With `-` for the seconds it goes on for as long as its standard input is open, and says
so when it holds as many connections as it wants or gets. Prints JSON: for each attack how many
connections it opened and held at most, how many bytes it got rid of, and how many of its
connections the server ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import random
import resource
import struct
import sys
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

BLOCK = 64 * 1024
GIGABYTE = 1024**3
IDLE = 1000
MOST_SECONDS = 200.0
# Before the next attempt where none is let in: a thousand at once would only keep each other busy.
REFUSED_SECONDS, MOST_REFUSED_SECONDS = 0.05, 2.0
# What each port of ours has, and what only one of them has.
POSTS = (
    "/health",
    "/api/execute",
    "/heartbeat",
    "/hooks/alerts",
    "/api/llm/generate",
    "/api/memory/set",
)


@dataclass
class Attack:
    """One connection of one kind."""

    name: str
    host: str
    port: int
    paths: tuple[str, ...] = POSTS
    tried: int = 0
    refused: int = 0
    opened: int = 0
    most: int = 0
    sent: int = 0
    ended: int = 0
    held: int = 0

    async def repeat(self, talk: Talk) -> None:
        """Do it again and again, each time on a new connection."""
        pause, first = REFUSED_SECONDS, 1
        while True:
            try:
                try:
                    reader, writer = await asyncio.open_connection(self.host, self.port)
                finally:
                    self.tried, first = self.tried + first, 0
            except OSError:
                self.refused += 1
                await asyncio.sleep(pause)
                pause = min(2 * pause, MOST_REFUSED_SECONDS)
                continue
            self.opened += 1
            self.held += 1
            self.most = max(self.most, self.held)
            try:
                with contextlib.suppress(OSError):
                    await talk(self, reader, writer)
                self.ended += 1
            finally:
                self.held -= 1
                writer.transport.abort()
            await asyncio.sleep(0.01)

    async def send(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        """Send; raises OSError once the server has hung up."""
        writer.write(data)
        await writer.drain()
        self.sent += len(data)


Talk = Callable[[Attack, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def endless(head: bytes, piece: bytes) -> Talk:
    """A request that begins with `head` and goes on with `piece` for ever."""

    async def talk(
        attack: Attack, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await attack.send(writer, head)
        while True:
            await attack.send(writer, piece)

    return talk


async def trailers(
    attack: Attack, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """What may follow a body in pieces, without end: many fields, or one."""
    path = random.choice(attack.paths).encode()
    await attack.send(
        writer, b"POST " + path + b" HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n"
    )
    piece = random.choice([b"x: y\r\n" * 10_000, b"x" * BLOCK])
    if piece.startswith(b"xx"):
        await attack.send(writer, b"X: ")
    while True:
        await attack.send(writer, piece)


async def pipelined(
    attack: Attack, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Requests without end, and no answer is read."""
    while True:
        await attack.send(writer, b"GET /metrics HTTP/1.1\r\n\r\n" * 5_000)


async def declared_body(
    attack: Attack, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """A gigabyte, announced."""
    path = random.choice(attack.paths).encode()
    await attack.send(
        writer, b"POST " + path + b" HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % GIGABYTE
    )
    while True:
        await attack.send(writer, b"x" * BLOCK)


async def held_body(
    attack: Attack, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """All but the last byte of the largest body that is taken."""
    head = b"POST /api/memory/set HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    size = 4 * 1024 * 1024
    await attack.send(writer, head + b"Content-Length: %d\r\n\r\n" % size)
    await attack.send(writer, b"x" * (size - 1))
    await reader.read()


async def chunked_body(
    attack: Attack, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """A body in pieces without end."""
    path = random.choice(attack.paths).encode()
    await attack.send(
        writer, b"POST " + path + b" HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    while True:
        await attack.send(writer, b"%x\r\n" % BLOCK + b"x" * BLOCK + b"\r\n")


async def noise(
    attack: Attack, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Random bytes."""
    while True:
        await attack.send(writer, random.randbytes(BLOCK))


async def slow_head(
    attack: Attack, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Half a head, and then a byte now and then."""
    await attack.send(writer, b"GET /health HTTP/1.1\r\nX: ")
    while not reader.at_eof():
        await attack.send(writer, b"x")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.5):
                await reader.read(1)


async def slow_lines(
    attack: Attack, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Empty lines before a request, now and then, after a first one that was answered."""
    await attack.send(writer, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
    while not reader.at_eof():
        await attack.send(writer, b"\r\n")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.5):
                await reader.read(BLOCK)


async def idle(_attack: Attack, reader: asyncio.StreamReader, _writer: object) -> None:
    """Nothing at all."""
    await reader.read(1)


def held(message: bytes) -> Talk:
    """Half of an exchange: a message, and nothing after it, whatever is answered."""

    async def talk(
        attack: Attack, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await attack.send(writer, message)
        while await reader.read(BLOCK):
            pass

    return talk


def kafka_request(key: int, version: int, body: bytes) -> bytes:
    """A request of Kafka's protocol."""
    request = struct.pack(">hhih", key, version, 1, 4) + b"test" + body
    return struct.pack(">i", len(request)) + request


def postgres_startup(user: bytes, database: bytes) -> bytes:
    """What opens a session of PostgreSQL's protocol, the question for a password its answer."""
    options = b"user\0" + user + b"\0database\0" + database + b"\0\0"
    return struct.pack(">ii", len(options) + 8, 3 << 16) + options


REDIS_ECHO = b"*2\r\n$4\r\nPING\r\n$10000\r\n" + b"x" * 10_000 + b"\r\n"

KINDS: dict[str, tuple[int, Talk]] = {
    "long_header": (6, endless(b"GET /health HTTP/1.1\r\nX: ", b"x" * BLOCK)),
    "many_headers": (6, endless(b"GET /health HTTP/1.1\r\n", b"x: y\r\n" * 10_000)),
    "long_target": (6, endless(b"GET /", b"x" * BLOCK)),
    "trailers": (6, trailers),
    "pipelined": (6, pipelined),
    "declared_body": (6, declared_body),
    "held_body": (60, held_body),
    "chunked_body": (6, chunked_body),
    "noise": (6, noise),
    "slow_head": (50, slow_head),
    "slow_lines": (50, slow_lines),
    "idle": (IDLE, idle),
    "held_head": (100, held(b"GET /health HTTP/1.1\r\n" + b"x: y\r\n" * 140_000)),
    # Of protocols that are no HTTP.
    "frame": (6, endless(struct.pack(">i", GIGABYTE), b"x" * BLOCK)),
    "held_frame": (60, held(struct.pack(">i", 500_000) + b"x" * 499_999)),
    "kafka_login": (60, held(kafka_request(17, 1, struct.pack(">h", 13) + b"SCRAM-SHA-512"))),
    "postgres_login": (120, held(postgres_startup(b"prime_spark_ingest", b"prime_spark"))),
    "redis_bulk": (6, endless(b"*2\r\n$4\r\nPING\r\n$500000000\r\n", b"x" * BLOCK)),
    "redis_unread": (6, endless(b"", REDIS_ECHO * 10)),
}
# What a port has to bear whose protocol is HTTP.
HTTP = tuple(KINDS)[: tuple(KINDS).index("idle") + 1]


# What a server need not end soon. Redis ends a client that reads no answers only once these have
# filled the buffers of both kernels.
SLOW = (
    *("slow_head", "slow_lines", "idle", "held_head"),
    *("held_frame", "kafka_login", "postgres_login", "redis_unread"),
)


async def tried(attacks: Iterable[Attack]) -> None:
    """Wait until all connections have been tried once, or as many as there is room for."""
    while any(not a.refused and a.tried < KINDS[a.name][0] for a in attacks):
        await asyncio.sleep(0.05)


async def ended(attacks: Iterable[Attack], until: float) -> None:
    """Wait until then, and until the server has ended a connection of each attack."""
    began = time.monotonic()
    while (now := time.monotonic()) < until or (
        now < began + MOST_SECONDS and not all(attack.ended for attack in attacks)
    ):
        await asyncio.sleep(0.1)


async def run(target: str, seconds: str, names: list[str]) -> dict[str, dict[str, int]]:
    """Attack in all these ways at a time; return what came of it.

    Until the server has ended a connection of every kind, of those that are slow where it is ours
    and there is time for it.
    """
    address, slash, path = target.partition("/")
    host, _, port = address.rpartition(":")
    paths = (slash + path,) if path else POSTS
    attacks = {name: Attack(name, host or "127.0.0.1", int(port), paths) for name in names}
    tasks: list[asyncio.Task[None]] = []

    def begin(attack: Attack) -> None:
        number, talk = KINDS[attack.name]
        tasks.extend(asyncio.create_task(attack.repeat(talk)) for _ in range(number))

    # The slow ones last: where there is only so much room, the others are to have some of it.
    fast = [attack for name, attack in attacks.items() if name not in SLOW]
    for attack in fast:
        begin(attack)
    await tried(fast)
    if seconds == "-":
        await ended(fast, time.monotonic())
    for attack in attacks.values():
        if attack.name in SLOW:
            begin(attack)
    if seconds == "-":
        await tried(attacks.values())
        sys.stdout.write("complete\n")
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.read)
    else:
        # Not on a host of the fleet, which has no release of ours that serves HTTP.
        limits = importlib.import_module("prime_spark.runtime.http_protocol")
        awaited = attacks.values() if float(seconds) > limits.HEAD_SECONDS else fast
        await ended(awaited, time.monotonic() + float(seconds))
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    return {
        name: {"opened": a.opened, "most": a.most, "sent": a.sent, "ended": a.ended}
        for name, a in attacks.items()
    }


if __name__ == "__main__":
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))
    sys.stdout.write(json.dumps(asyncio.run(run(sys.argv[1], sys.argv[2], sys.argv[3:]))))

"""Requests per second and latency of the API against a baseline, with the load tool `wrk`.

    bench_api.py [--seconds 1] [--rounds 15] [--kafka-rounds 5] [--only NAME]

Ours and the baseline (bench_baseline.py) are measured in turns, so that whatever else the machine
does falls on both alike, the more so the shorter a turn is; a ratio is the median over the rounds.
`x` is the baseline's requests per second over ours; `cpu` is our processor time per request over
the baseline's. The last part compares the memory's p99 with Kafka up and with Kafka stopped, in
turns too, which are longer: one request in a hundred is what they look for.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import timeit
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
from redis import Redis

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[3])]

from tests.integration.servers import (  # noqa: E402
    KafkaServer,
    kafka_server,
    llama_server,
    postgres_server,
    redis_server,
)

from api_support import Api, Servers, credentials, running_api  # noqa: E402
from prime_spark.api.auth.tokens import AccessTokens  # noqa: E402
from support import eventually, free_port  # noqa: E402

CONNECTIONS = (1, 16, 64)
MEMORY_SET = {"key": "bench", "value": {"text": "x" * 100}, "ttl": 3600}
GENERATE = {"prompt": "Say hello", "max_tokens": 16, "seed": 1, "temperature": 0}
KAFKA_SECONDS = 4
TOKEN_SECONDS = 120  # a fifth of what they are good for
UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 6e4}


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


@dataclass(frozen=True)
class Request:
    """What is asked for."""

    name: str
    path: str
    body: object = None
    authenticated: bool = True


REQUESTS = (
    Request("health", "/health", authenticated=False),
    Request("me", "/api/auth/me"),
    Request("memory_get", "/api/memory/get/bench"),
    Request("memory_set", "/api/memory/set", MEMORY_SET),
    Request("generate", "/api/llm/generate", GENERATE),
)
# For the last line. `me` shows what authentication costs: it does nothing else.
LAST = ("health", "memory_get", "memory_set")


@dataclass(frozen=True)
class Target:
    """A server: its address and its process."""

    url: str
    process: psutil.Process

    def cpu_seconds(self) -> float:
        """Return the processor time that it has used."""
        used = self.process.cpu_times()
        return float(used.user + used.system)


@dataclass(frozen=True)
class Measured:
    """Requests per second; latencies in milliseconds; processor time in microseconds a request."""

    rate: float
    p50: float
    p99: float
    cpu: float


class Load:
    """Runs wrk for some seconds, with a token that has not run out."""

    def __init__(self, folder: Path, log_in: Callable[[], str], seconds: int) -> None:
        self._folder = folder
        self._log_in = log_in
        self._token = ""
        self._renew = 0.0
        self._seconds = seconds

    def run(self, target: Target, request: Request, connections: int) -> Measured:
        """Send `request` for some seconds over so many connections."""
        if time.monotonic() >= self._renew:
            self._token = self._log_in()
            self._renew = time.monotonic() + TOKEN_SECONDS
        script = self._folder / f"{request.name}.lua"
        lines = []
        if request.authenticated:
            lines.append(f'wrk.headers["Authorization"] = "Bearer {self._token}"')
        if request.body is not None:
            lines += ['wrk.method = "POST"', f"wrk.body = [[{json.dumps(request.body)}]]"]
            lines.append('wrk.headers["Content-Type"] = "application/json"')
        script.write_text("\n".join(lines) + "\n")
        command = ["wrk", "--threads", "1", "--connections", str(connections), "--latency"]
        command += ["--duration", f"{self._seconds}s", "--timeout", "10s"]
        command += ["--script", str(script), target.url + request.path]
        before = target.cpu_seconds()
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        used = target.cpu_seconds() - before
        bad = re.search(r"Non-2xx or 3xx responses: (\d+)|Socket errors: (.*)", done.stdout)
        if bad:
            raise SystemExit(f"{target.url}{request.path}: {bad[0]}")
        rate = re.search(r"Requests/sec:\s+([\d.]+)", done.stdout)
        count = re.search(r"(\d+) requests in", done.stdout)
        assert rate is not None, done.stdout
        assert count is not None, done.stdout
        return Measured(
            float(rate[1]),
            _latency(done.stdout, 50),
            _latency(done.stdout, 99),
            used * 1e6 / int(count[1]),
        )


def _latency(text: str, percent: int) -> float:
    found = re.search(rf"^\s+{percent}%\s+([\d.]+)(us|ms|s|m)$", text, re.MULTILINE)
    assert found is not None, text
    return float(found[1]) * UNITS[found[2]]


@contextmanager
def baseline(redis_url: str, prompt: str, answer: object) -> Iterator[Target]:
    """The baseline's process."""
    with Redis.from_url(redis_url) as redis:
        redis.set(f"baseline:{prompt}", json.dumps(answer))
    port = free_port()
    key = credentials(Servers())["signing_key"]
    command = [sys.executable, str(HERE / "bench_baseline.py"), str(port), redis_url, key]
    process = subprocess.Popen(command)
    url = f"http://127.0.0.1:{port}"
    try:
        eventually(lambda: _answers(url), 30, "the baseline answers")
        yield Target(url, psutil.Process(process.pid))
    finally:
        process.kill()
        process.wait()


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def compare(
    load: Load, requests: list[Request], targets: tuple[Target, Target], rounds: int
) -> tuple[dict[str, float], list[str]]:
    """Print a table; return the ratios, the worst of the connection counts for each request.

    Also return the table's rows as pairs. `targets` are ours and the baseline.
    """
    heads = ("request", "conn", "ours req/s", "p50 ms", "p99 ms", "base req/s", "p50", "p99")
    line = "{:11} {:>4} {:>10} {:>7} {:>7} {:>10} {:>7} {:>7} {:>5} {:>5}"
    say(line.format(*heads, "x", "cpu"))
    worst: dict[str, float] = {}
    per_request: dict[str, float] = {}
    rows = []
    for request in requests:
        for connections in CONNECTIONS:
            pairs = []
            for number in range(rounds):
                both = [(target, place) for place, target in enumerate(targets)]
                results: list[Measured | None] = [None, None]
                for target, place in both if number % 2 else reversed(both):
                    results[place] = load.run(target, request, connections)
                pairs.append((results[0], results[1]))
            ratio = statistics.median(b.rate / a.rate for a, b in pairs if a and b)
            processor = statistics.median(a.cpu / b.cpu for a, b in pairs if a and b)
            mine, base = (
                Measured(
                    *(
                        statistics.median(getattr(pair[side], field) for pair in pairs)
                        for field in ("rate", "p50", "p99", "cpu")
                    )
                )
                for side in (0, 1)
            )
            worst[request.name] = max(worst.get(request.name, 0.0), ratio)
            if connections == 16:
                per_request[request.name] = 1e6 / base.rate
            say(
                f"{request.name:11} {connections:>4} {mine.rate:>10.0f} {mine.p50:>7.2f} "
                f"{mine.p99:>7.2f} {base.rate:>10.0f} {base.p50:>7.2f} {base.p99:>7.2f} "
                f"{ratio:>5.2f} {processor:>5.2f}",
            )
            figures = {
                "rate": f"{mine.rate:.0f}",
                "p99": f"{mine.p99:.1f}",
                "base_rate": f"{base.rate:.0f}",
                "base_p99": f"{base.p99:.1f}",
                "x": f"{ratio:.2f}",
                "cpu": f"{processor:.2f}",
            }
            rows.append(
                " ".join(
                    f"{request.name}_{connections}_{key}={text}" for key, text in figures.items()
                )
            )
    if {"me", "health"} <= per_request.keys():
        cost = per_request["me"] - per_request["health"]
        say(
            f"authentication costs about {cost:.0f} us a request in the baseline, where health "
            f"takes {per_request['health']:.0f} us; {first_sight():.0f} us more when a token is "
            "first seen"
        )
    return worst, rows


def first_sight() -> float:
    """Return the microseconds that examining a token takes, which is done once for each."""
    tokens = AccessTokens([credentials(Servers())["signing_key"]], "issuer", "audience", 600)
    token = tokens.issue("alice", "0" * 32, "0" * 16)
    count = 500
    return min(timeit.repeat(lambda: tokens.verify(token), number=count)) / count * 1e6


def kafka_away(load: Load, api: Api, target: Target, kafka: KafkaServer, rounds: int) -> float:
    """Return the memory's p99 with Kafka stopped over its p99 with Kafka up."""
    request = next(item for item in REQUESTS if item.name == "memory_get")
    ratios = []
    for number in range(rounds):
        up = load.run(target, request, 4).p99
        kafka.kill()
        eventually(lambda: api.subsystems()["kafka"]["status"] == "down", 30)
        down = load.run(target, request, 4).p99
        kafka.start()
        eventually(lambda: api.subsystems()["kafka"]["status"] == "ok", 60)
        eventually(lambda: api.subsystems()["kafka"]["queued"] < 100, 60)
        ratios.append(down / up)
        say(f"kafka round {number + 1}: p99 {up:.2f} ms up, {down:.2f} ms stopped")
    return statistics.median(ratios)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--kafka-rounds", type=int, default=5)
    names = [request.name for request in REQUESTS]
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="these requests")
    arguments = parser.parse_args()
    limits = dict.fromkeys(("login", "read", "write", "generate"), "1000000/second")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        redis = stack.enter_context(redis_server())
        kafka = stack.enter_context(kafka_server())
        postgres = stack.enter_context(postgres_server())
        llama = stack.enter_context(llama_server())
        servers = Servers(redis, kafka, postgres, "api_bench", edge=llama, cloud=llama)
        servers.prepare(folder)
        api = stack.enter_context(running_api(servers, folder, limits=limits))

        def log_in() -> str:
            answer = api.login("alice")
            assert answer.status_code == 200, answer.text
            return str(answer.json()["access_token"])

        for path, body in (("/api/memory/set", MEMORY_SET), ("/api/llm/generate", GENERATE)):
            answer = api.ask("POST", path, user="alice", json=body)
            assert answer.status_code == 200, answer.text
        assert api.daemon.process is not None
        ours = Target(api.url, psutil.Process(api.daemon.process.pid))
        base = stack.enter_context(baseline(redis.url, "Say hello", answer.json()))
        load = Load(folder, log_in, arguments.seconds)
        cores = os.cpu_count()
        say(f"{time.strftime('%Y-%m-%d')}, {cores} cores shared with the servers and wrk")
        for target in (ours, base):  # warm up
            for request in REQUESTS:
                load.run(target, request, 16)
        chosen = [request for request in REQUESTS if request.name in arguments.only]
        ratios, rows = compare(load, chosen, (ours, base), arguments.rounds)
        dropped = api.subsystems()["kafka"]["dropped"]
        say(f"events dropped for want of room meanwhile: {dropped}")
        if arguments.kafka_rounds:
            long = Load(folder, log_in, KAFKA_SECONDS)
            p99 = kafka_away(long, api, ours, kafka, arguments.kafka_rounds)
            say(f"memory_get p99 with kafka stopped / up: {p99:.2f}")
            rows.append(f"memory_get_p99_without_kafka={p99:.2f}")
        for row in rows:
            say(row)
        for names in (ratios.keys() - set(LAST), LAST):
            shown = [f"overhead_{name}={ratios[name]:.2f}" for name in names if name in ratios]
            if shown:
                say(" ".join(sorted(shown)))


if __name__ == "__main__":
    main()

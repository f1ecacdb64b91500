"""Schemathesis: whatever the document allows is answered as the document says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.servers import KafkaServer, LlamaServer, PostgresServer, RedisServer

from api_support import PASSWORD, Api, Servers, running_api

FULL = bool(os.environ.get("PRIME_SPARK_FULL"))
EXAMPLES = "200" if FULL else "20"
# What a valid request may be answered with besides success: a name nobody has, a wrong password,
# a task that is not finished, a value that is too large for its tier.
CONFIG = """
[checks.positive_data_acceptance]
expected-statuses = ["2xx", "401", "404", "409", "413"]
# Too long in a field can be too large as a whole.
[checks.negative_data_rejection]
expected-statuses = ["400", "401", "403", "404", "405", "409", "413", "422", "429"]

# What a payload has to be beyond its schema is for the type of its task.
[[operations]]
include-path = "/api/tasks/submit"
[operations.checks.positive_data_acceptance]
expected-statuses = ["2xx", "409", "422"]
"""


@pytest.fixture
def api(
    redis: RedisServer,
    kafka: KafkaServer,
    postgres: PostgresServer,
    llama: LlamaServer,
    tmp_path: Path,
) -> Iterator[Api]:
    servers = Servers(redis, kafka, postgres, "api_schema", edge=llama, cloud=llama)
    servers.prepare(tmp_path)
    limits = {"generate": "100000/minute"}
    with running_api(servers, tmp_path, limits=limits, lockout={"failures": 100}) as running:
        yield running


@pytest.mark.timeout(900)
def test_all_checks_pass_on_a_running_server(api: Api, tmp_path: Path) -> None:
    config = tmp_path / "schemathesis.toml"
    config.write_text(CONFIG)
    program = str(Path(sys.executable).with_name("schemathesis"))
    command = [program, "--config-file", str(config), "run", f"{api.url}/openapi.json"]
    command += ["--checks", "all", "--max-examples", EXAMPLES, "--seed", "1"]
    command += ["--generation-deterministic"]
    command += ["--request-timeout", "30", "--suppress-health-check", "all", "--no-color"]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path),
            "SCHEMATHESIS_HOOKS": "schemathesis_hooks",
            "PYTHONPATH": str(Path(__file__).parent),
            "PRIME_SPARK_URL": api.url,
            "PRIME_SPARK_USERNAME": "alice",
            "PRIME_SPARK_PASSWORD": PASSWORD,
        },
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-12_000:] + done.stderr[-2000:]
    tested = re.search(r"(\d+) generated", done.stdout)
    assert tested is not None, done.stdout[-2000:]
    assert int(tested[1]) > 500
    requests = [line for line in api.log() if line["event"].startswith("request")]
    assert not requests, "answers of 500 and above, and slow ones, are in the log"

"""A run at -vvv --diff that writes every secret anew tells none, here or on any host.

The secrets themselves are the canaries, in raw, base64, hexadecimal, URL-encoded and JSON-escaped
form. What fails names the secret and the place, never the value.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import subprocess
import urllib.parse
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.system.fleet import fleet
from tests.system.fleet.canaries import scan, scan_host
from tests.system.fleet.fleet import connect, members, probe, shell
from tests.system.fleet.probes import secrets as scanner

CALLBACKS = Path(__file__).resolve().parent / "callback_plugins"
# Without them every task that writes a secret has something to do again. The containers keep
# running: they have read theirs, and what is written anew is the same.
REMOVE = """
    rm -f /etc/prime-spark/*/credentials/*
    rm -f /opt/prime-spark/stack/*/config/*/secret/*
    rm -f /opt/prime-spark/stack/*/.env
"""


class Run(NamedTuple):
    """What a run of the whole site left behind."""

    output: bytes
    variables: bytes
    processes: dict[str, Any]


def watch(name: str) -> dict[str, Any]:
    """Look at the processes of a host until the file is gone."""
    return dict(scan_host(name, "watch", seconds=1800)["watch"])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """The whole site at -vvv --diff, every secret to be written, all processes watched."""
    names = members("all")
    dump = tmp_path_factory.mktemp("canary") / "variables.json"
    for name in names:
        shell(connect(name), f"touch {scanner.WATCH}; {REMOVE}")
    with ThreadPoolExecutor(len(names)) as pool:
        watching = {name: pool.submit(watch, name) for name in names}
        try:
            done = subprocess.run(
                [fleet.BIN / "ansible-playbook", "site.yml", "-vvv", "--diff"],
                cwd=fleet.ROOT,
                capture_output=True,
                env={
                    **os.environ,
                    "ANSIBLE_CALLBACK_PLUGINS": str(CALLBACKS),
                    "ANSIBLE_CALLBACKS_ENABLED": "dump_variables",
                    "PRIME_SPARK_TEST_DUMP": str(dump),
                },
            )
        finally:
            for name in names:
                shell(connect(name), f"rm -f {scanner.WATCH}")
        seen = {name: future.result() for name, future in watching.items()}
    assert done.returncode == 0, done.stdout.decode()[-3000:]
    yield Run(done.stdout + done.stderr, dump.read_bytes(), seen)


@pytest.mark.looks
def test_the_run_wrote_the_secrets_anew(run: Run) -> None:
    for place in (b"/etc/prime-spark/telemetry/credentials/kafka_password", b"secret/users.acl"):
        assert b"write " in run.output
        assert place in run.output
    assert b"(secret: content not shown)" in run.output
    assert all(seen["seen"] > 20 for seen in run.processes.values())


@pytest.mark.looks
def test_the_output_tells_no_secret(run: Run) -> None:
    # With everything that -vvv says of every module's arguments and results.
    assert run.output.count(b"module_args") > 50
    told = [(n, line[:60]) for n, line in enumerate(run.output.splitlines()) if scan(line)]
    assert told == []


@pytest.mark.looks
def test_facts_and_variables_tell_no_secret(run: Run) -> None:
    dumped = json.loads(run.variables)
    assert set(dumped) == set(members("all"))
    told = {
        name: [key for key, value in variables.items() if scan(json.dumps(value).encode())]
        for name, variables in dumped.items()
    }
    # Those are the vault's own; everything else only refers to them.
    told = {name: [k for k in keys if not k.startswith("vault_")] for name, keys in told.items()}
    assert all(keys == [] for keys in told.values()), told


@pytest.mark.looks
def test_no_process_on_any_host_had_a_secret_meanwhile(run: Run) -> None:
    assert {name: seen["found"] for name, seen in run.processes.items() if seen["found"]} == {}


@pytest.mark.looks
@pytest.mark.parametrize("name", members("all"))
def test_a_host_tells_no_secret_afterwards(run: Run, name: str) -> None:
    seen = scan_host(name, "processes", "docker", "journal", "files", seconds=120)
    assert seen["processes"] == {}
    assert seen["docker"] == []
    assert seen["journal"] == []
    # tests/system/fleet/test_secrets.py says where they may stand; these are places for nobody.
    left = [p for p in seen["files"] if p.startswith(("/tmp/", "/var/tmp/", "/root/", "/home/"))]
    left += [p for p in seen["files"] if "/systemd/system/" in p or p.startswith("/var/log/")]
    assert left == []


@pytest.mark.looks
def test_the_repository_and_its_history_have_no_secret() -> None:
    objects = subprocess.run(
        ["git", "cat-file", "--batch", "--batch-all-objects", "--unordered"],
        cwd=fleet.ROOT,
        capture_output=True,
        check=True,
    ).stdout
    assert len(objects) > 100_000
    assert scan(objects) == []


@pytest.mark.looks
def test_the_controller_keeps_no_secret(run: Run) -> None:
    found = {}
    for place in (Path.home() / ".ansible", fleet.LAB / "logs", fleet.ROOT / ".ansible"):
        # Temporary directories of other runs may go meanwhile, which os.walk takes calmly.
        for directory, _, leaves in os.walk(place):
            for path in (Path(directory, leaf) for leaf in leaves):
                if path.is_file() and (names := scan(path.read_bytes())):
                    found[str(path)] = names
    assert found == {}


def test_every_form_of_a_secret_would_be_found() -> None:
    """Plants one, in every form and place that the search knows of, and takes it away again."""
    name = members("docker")[0]
    host, value = connect(name), f"{secrets.token_hex(24)}/+{secrets.token_hex(4)}="
    wanted = json.dumps(scanner.digests({"planted": value}))
    written = [value, value.encode().hex(), json.dumps(value).replace("/", "\\/")]
    for shift in ("", "x", "xy"):
        written.append(base64.b64encode((shift + value).encode()).decode())
    written.append(urllib.parse.quote(value, safe=""))
    assert all(
        scanner.names_in(text.encode(), json.loads(wanted)) == ["planted"] for text in written
    )
    try:
        for number, text in enumerate(written):
            shell(
                host,
                'printf "x %s x" "$1" > /tmp/canary-$2; chmod 644 /tmp/canary-$2',
                text,
                str(number),
            )
        shell(
            host,
            'PLANTED="$1" setsid sleep 60 </dev/null >/dev/null 2>&1 & echo $! > /run/canary-pid',
            value,
        )
        seen = probe(host, "secrets", wanted, json.dumps(["files", "processes"]))
        assert {path for path in seen["files"] if path.startswith("/tmp/canary-")} == {
            f"/tmp/canary-{number}" for number in range(len(written))
        }
        assert not seen["files"]["/tmp/canary-0"][3]
        assert [where for _, where in seen["processes"].values()] == ["environ"]
    finally:
        shell(host, "rm -f /tmp/canary-*; kill $(cat /run/canary-pid); rm -f /run/canary-pid")

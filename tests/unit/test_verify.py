"""playbooks/verify.yml on this machine: the real module, hosts that are in few groups."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.prime_spark.fleet.plugins.filter import monitoring_targets as BCRYPT
from ansible_collections.prime_spark.fleet.plugins.modules import host_health as HEALTH

ROOT = Path(__file__).resolve().parents[2]
# That Ansible reads out of a result, whatever a module means by them.
RESERVED = {
    *("ansible_facts", "deprecations", "diff", "exception", "failed", "invocation", "rc"),
    *("results", "skip_reason", "skipped", "unreachable", "warnings"),
}


@pytest.mark.parametrize(
    "path", sorted((ROOT / "plugins" / "modules").glob("*.py")), ids=lambda path: path.stem
)
def test_no_module_returns_a_word_that_ansible_keeps(path: Path) -> None:
    text = path.read_text()
    found = text.partition('RETURN = r"""')[2].partition('"""')[0]
    returned = set(yaml.safe_load(found) or {})
    assert not returned & RESERVED - {"ansible_facts"}
    assert "skipped=" not in text


def verify(tmp_path: Path, groups: dict[str, list[str]], *arguments: str, **facts: Any) -> Any:
    """Look at hosts that are this machine, whose group `nas` says of a share that is not there."""
    tools = tmp_path / "tools"
    tools.mkdir()
    # What it leaves out does not depend on what the tests run in.
    (tools / "systemd-detect-virt").write_text("#!/bin/sh\necho a-container\n")
    (tools / "systemd-detect-virt").chmod(0o755)
    names = sorted({name for members in groups.values() for name in members})
    hosts = {name: {"host_precheck": {"changed": False}} for name in names}
    children: dict[str, Any] = {"managed": {"hosts": hosts}}
    children |= {g: {"hosts": {name: {} for name in members}} for g, members in groups.items()}
    variables = {
        "ansible_connection": "local",
        "ansible_become": False,
        "ansible_python_interpreter": sys.executable,
        "nas_mount_point": str(tmp_path / "not-there"),
    }
    inventory = tmp_path / "hosts.yml"
    inventory.write_text(json.dumps({"all": {"vars": variables, "children": children}}))
    return subprocess.run(
        [
            Path(sys.executable).with_name("ansible-playbook"),
            *("-i", inventory, "playbooks/verify.yml", "--tags", "verify", *arguments),
        ],
        cwd=ROOT,
        env={**os.environ, "ANSIBLE_NOCOLOR": "1", "PATH": f"{tools}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("limit", [(), ("--limit", "one")], ids=["whole", "limited"])
def test_what_is_wrong_is_said_in_the_table(tmp_path: Path, limit: tuple[str, ...]) -> None:
    # A share that is not there, and a unit that another look might find active.
    done = verify(tmp_path, {"nas": ["one"], "api": ["one"]}, "-e", "verify_wait=1", *limit)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Unknown error" not in done.stdout
    assert re.search(r"^WRONG    one: unit.*", done.stdout, re.MULTILINE), done.stdout
    assert f"WRONG    one: {tmp_path}/not-there does not answer" in done.stdout
    assert "left out kernel settings other than net.*: the host is a container" in done.stdout


def test_a_fleet_without_database_telemetry_and_vpn_is_well(tmp_path: Path) -> None:
    done = verify(tmp_path, {"cli": ["one", "two"]})
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all well" in done.stdout


@pytest.mark.parametrize(
    ("found", "again"),
    [
        ({"problems": [], "settled": [], "telemetry": {"one": 5.0}}, False),
        ({"problems": [], "settled": [], "telemetry": {"one": 30.0}}, True),
        ({"problems": [], "settled": [], "telemetry": {}}, True),
        ({"problems": ["a share"], "settled": ["a share"], "telemetry": {"one": 5.0}}, False),
        ({"problems": ["x", "a share"], "settled": ["a share"], "telemetry": {"one": 5.0}}, True),
    ],
)
def test_what_may_still_come_is_looked_at_again(found: dict[str, Any], again: bool) -> None:
    asked = {"database": "prime_spark", "devices": ["one"], "fresh_seconds": 20}
    assert HEALTH.may_improve(found, asked) is again


# --- Prometheus' targets, from a real one -----------------------------------------------------


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.fixture
def prometheus(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """One that scrapes itself and a port where nobody listens; the module's argument."""
    own, closed = free_port(), free_port()
    web = {"basic_auth_users": {"prime-spark": BCRYPT.bcrypt_hash("a password", "prime-spark")}}
    (tmp_path / "web.yml").write_text(yaml.safe_dump(web))
    (tmp_path / "password").write_text("a password")
    login = {"username": "prime-spark", "password_file": str(tmp_path / "password")}
    jobs = [
        {"job_name": name, "basic_auth": login, "static_configs": [{"targets": [place]}]}
        for name, place in (("prometheus", f"127.0.0.1:{own}"), ("node", f"127.0.0.1:{closed}"))
    ]
    settings = {"global": {"scrape_interval": "1s"}, "scrape_configs": jobs}
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(settings))
    program = Path(sys.executable).with_name("prometheus")
    assert program.exists(), "tools/prometheus-tools puts it there (make check)"
    process = subprocess.Popen(
        [
            program,
            *("--config.file", tmp_path / "prometheus.yml"),
            *("--web.config.file", tmp_path / "web.yml"),
            *("--web.listen-address", f"127.0.0.1:{own}"),
            *("--storage.tsdb.path", tmp_path / "data"),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    yield {
        "url": f"http://127.0.0.1:{own}",
        **login,
        "targets": [
            {"job": job, "host": host, "address": f"127.0.0.1:{port}", "service": ""}
            for job, host, port in (("prometheus", "one", own), ("node", "two", closed))
        ],
    }
    process.terminate()
    process.wait(timeout=20)


def test_a_target_that_is_down_is_named(prometheus: dict[str, Any]) -> None:
    up, down = prometheus["targets"]
    missing = {"job": "node", "host": "three", "address": "127.0.0.1:1", "service": ""}
    deadline = time.monotonic() + 20
    while (said := HEALTH.target_problems({**prometheus, "targets": [up]})) != []:
        assert time.monotonic() < deadline, said
        time.sleep(0.1)
    while "not scraped yet" in (said := HEALTH.target_problems(prometheus))[0]:
        assert time.monotonic() < deadline, said
        time.sleep(0.1)
    assert len(said) == 1
    assert said[0].startswith(f"Prometheus: node of two at {down['address']} is down (")
    assert "connection refused" in said[0] and said[0].endswith(", expected up")
    assert HEALTH.target_problems({**prometheus, "targets": [missing]}) == [
        "Prometheus: node of three at 127.0.0.1:1 is not among its targets, expected up"
    ]


def test_a_prometheus_that_does_not_answer_is_named(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("a password")
    asked = {
        "url": f"http://127.0.0.1:{free_port()}",
        "username": "prime-spark",
        "password_file": str(tmp_path / "password"),
        "targets": [],
    }
    (said,) = HEALTH.target_problems(asked)
    assert said.startswith("Prometheus does not tell its targets: ")

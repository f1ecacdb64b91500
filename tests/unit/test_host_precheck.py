"""What makes a host unfit, from what its kernel and its clock say."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.prime_spark.fleet.plugins.action import host_precheck as ACTION
from ansible_collections.prime_spark.fleet.plugins.module_utils import listeners as LISTENERS
from ansible_collections.prime_spark.fleet.plugins.modules import host_precheck as MODULE

PARAMS = {
    "systems": ["Debian 12", "Debian 13"],
    "without_compose": [],
    "architectures": ["x86_64", "aarch64"],
    "python": "3.11",
}
FACTS = {
    "ansible_distribution": "Debian",
    "ansible_distribution_major_version": "13",
    "ansible_architecture": "aarch64",
    "ansible_service_mgr": "systemd",
}


def needed(port: int) -> dict[str, Any]:
    """A port that the API needs."""
    of_api = {"role": "api", "variable": "api_port", "units": ["x.service"], "projects": []}
    return {"port": port, "address": "127.0.0.1", **of_api}


def test_a_supported_system_has_no_problem() -> None:
    assert MODULE.system_problems(FACTS, PARAMS) == []


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"ansible_distribution": "Fedora"},
            "it runs Fedora 13, expected one of Debian 12, Debian 13",
        ),
        ({"ansible_architecture": "armv7l"}, "its architecture is armv7l, expected one of x86_64,"),
        ({"ansible_service_mgr": "openrc"}, "its services are managed by openrc, expected systemd"),
    ],
)
def test_an_unsupported_system_is_named(change: dict[str, str], sentence: str) -> None:
    (problem,) = MODULE.system_problems({**FACTS, **change}, PARAMS)
    assert problem.startswith(sentence)


def test_a_container_host_without_a_compose_plugin_is_told_what_to_set() -> None:
    params = {**PARAMS, "without_compose": ["Debian 12"]}
    assert MODULE.system_problems(FACTS, params) == []
    bookworm = {**FACTS, "ansible_distribution_major_version": "12"}
    assert MODULE.system_problems(bookworm, PARAMS) == []
    (problem,) = MODULE.system_problems(bookworm, params)
    assert "set docker_compose_plugin_url and docker_compose_plugin_sha256" in problem


def test_python_has_to_be_new_enough() -> None:
    (problem,) = MODULE.system_problems(FACTS, {**PARAMS, "python": "3.99"})
    assert "expected 3.99 or newer" in problem


def test_memory_is_compared_in_megabytes() -> None:
    meminfo = "MemTotal:        1000448 kB\nMemFree: 1 kB\n"  # 977 MB, a module of 1 GB
    assert MODULE.memory_problem(900, meminfo) == []
    assert MODULE.memory_problem(1000, meminfo) == [
        "it has 977 MB of memory, expected at least 1000 MB for its roles"
    ]


def test_a_full_disk_is_named_once_for_each_file_system(tmp_path: Any) -> None:
    paths = [str(tmp_path / "not" / "yet"), str(tmp_path)]
    assert MODULE.disk_problems(paths, 0) == []
    (problem,) = MODULE.disk_problems(paths, 10**9)
    assert f"free below {tmp_path}" in problem and "expected at least 1000000000 MB" in problem


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_a_foreign_program_on_a_port_is_found(family: socket.AddressFamily) -> None:
    place = "127.0.0.1" if family == socket.AF_INET else "::"
    with socket.socket(family) as server:
        try:
            server.bind((place, 0))
        except OSError:
            pytest.skip("no IPv6 here")
        server.listen()
        port = server.getsockname()[1]
        wanted = needed(port)
        (problem,) = LISTENERS.port_problems([wanted])
        assert f":{port}, which api needs; stop it or set api_port" in problem
        if family == socket.AF_INET:
            assert LISTENERS.port_problems([{**wanted, "address": "127.0.0.2"}]) == []
    assert LISTENERS.port_problems([wanted]) == []


def test_a_program_that_opens_and_closes_files_all_the_time_still_holds_its_port() -> None:
    busy = "\n".join(
        [
            "import os, socket",
            "server = socket.create_server(('127.0.0.1', 0))",
            "print(server.getsockname()[1], flush=True)",
            "while True:",
            "    for fd in [os.open('/dev/null', os.O_RDONLY) for _ in range(50)]:",
            "        os.close(fd)",
        ]
    )
    program = subprocess.Popen(
        [sys.executable, "-c", busy], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert program.stdout is not None
        port = int(program.stdout.readline())
        for _ in range(50):
            ((_, _, command, _),) = LISTENERS.listening({port})
            assert command.endswith(f"({program.pid})")
    finally:
        program.kill()
        program.communicate()


def test_a_socket_that_left_between_the_looks_is_nobodys(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        looks = []

        def restarting(inodes: set[str]) -> dict[str, tuple[str, str]]:
            looks.append(inodes)
            server.close()  # As a unit's process that ends after the table was read.
            return {}

        monkeypatch.setattr(LISTENERS, "holders", restarting)
        wanted = needed(port)
        assert LISTENERS.port_problems([wanted]) == []
    assert [len(inodes) for inodes in looks] == [1, 0]


@pytest.mark.parametrize(
    ("host", "sentence"),
    [
        (100.5, ""),  # within the time that the question took
        (97.0, ""),
        (106.0, ""),
        (90.0, "its clock is 10 s behind the controller's"),
        (120.0, "its clock is 19 s ahead of the controller's"),
    ],
)
def test_clocks_are_compared_with_what_the_question_took_allowed_for(
    host: float, sentence: str
) -> None:
    found = ACTION.clock_problem(host, 100.0, 101.0, 5.0)
    assert found.startswith(sentence) and bool(found) == bool(sentence)


def test_the_reason_for_not_reaching_a_host_is_one_line() -> None:
    said = (
        'Data could not be sent to remote host "10.90.1.11". Make sure this host can be reached '
        "over ssh: kex_exchange_identification: Connection closed by remote host\r\n"
        "Connection closed by UNKNOWN port 65535\r\n"
    )
    assert ACTION.reason(Exception(said)) == (
        "kex_exchange_identification: Connection closed by remote host"
    )


def test_a_proxy_that_ssh_cannot_name_is_left_out_of_the_reason() -> None:
    said = "Failed to connect to the host via ssh: \nConnection to UNKNOWN port 65535 timed out\r\n"
    assert ACTION.reason(Exception(said)) == "connection timed out"


# --- who does not let a run in ----------------------------------------------------------------

ROOT = Path(__file__).resolve().parents[2]
CHANGED = """@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@
@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @
@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@
IT IS POSSIBLE THAT SOMEONE IS DOING SOMETHING NASTY!
Host key for changed.invalid has changed and you have requested strict checking.
Host key verification failed."""
UNKNOWN = """No ED25519 host key is known for unknown.invalid and you have requested strict \
checking.
Host key verification failed."""
# Host to what ssh says and to the line that the run ends with for it.
KEPT_OUT = {
    "keyless": (
        "prime@keyless.invalid: Permission denied (publickey).",
        "keyless refuses the key of prime: let it in there (`ssh-copy-id prime@keyless.invalid`)",
    ),
    "changed": (
        CHANGED,
        "changed has another host key than the one that is known here: somebody else may be "
        "answering. If it was installed again: `ssh-keygen -R changed.invalid`",
    ),
    "unknown": (
        UNKNOWN,
        "the host key of unknown is not known here: `ssh prime@unknown.invalid` once",
    ),
    "closed": (
        "sudo: a password is required",
        "prime needs a password for sudo on closed: run with --ask-become-pass",
    ),
}


@pytest.mark.parametrize("tags", ["common", "verify"])
def test_only_who_cannot_be_reached_is_away(tmp_path: Path, tags: str) -> None:
    cases = {**KEPT_OUT, "away": ("ssh: connect to host away.invalid port 22: timed out", "")}
    script = ["#!/bin/sh", 'case "$*" in']
    for name, (said, _) in cases.items():
        (tmp_path / name).write_text(said + "\n")
        script.append(f"*{name}.invalid*) cat {tmp_path / name} >&2;;")
    (tmp_path / "ssh").write_text(
        "\n".join([*script, "esac", 'case "$*" in *closed.invalid*) exit 1;; esac', "exit 255"])
    )
    (tmp_path / "ssh").chmod(0o755)
    hosts = {name: {"ansible_host": f"{name}.invalid"} for name in cases}
    inventory = tmp_path / "hosts.yml"
    inventory.write_text(
        json.dumps(
            {
                "all": {
                    "vars": {"ansible_user": "prime"},
                    "children": {"managed": {"hosts": hosts}},
                }
            }
        )
    )
    outcome = tmp_path / "outcome"
    done = subprocess.run(
        [
            Path(sys.executable).with_name("ansible-playbook"),
            *("-i", inventory, "playbooks/facts.yml", "--tags", tags),
        ],
        cwd=ROOT,
        env={
            **os.environ,
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_SSH_EXECUTABLE": str(tmp_path / "ssh"),
            "PRIME_SPARK_OUTCOME": str(outcome),
        },
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode != 0
    said = " ".join(done.stdout.split())
    assert re.findall(r"(\w+) is unreachable \(", said) == ["away"]
    for name, (_, sentence) in KEPT_OUT.items():
        assert sentence in said, (name, done.stdout)
    assert json.loads(outcome.read_text()) == {
        "failed": sorted(KEPT_OUT),
        "unreachable": ["away"],
    }

"""The program behind the node exporter's textfiles: a NAS that hangs hangs nothing."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).resolve().parents[2] / "roles/node_exporter/files/program/host-metrics"


def load() -> Any:
    loader = importlib.machinery.SourceFileLoader("host_metrics", str(PROGRAM))
    spec = importlib.util.spec_from_loader("host_metrics", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.dont_write_bytecode, before = True, sys.dont_write_bytecode
    try:
        loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = before
    return module


program = load()


def samples(page: Any) -> dict[str, float]:
    lines = [line for line in page.lines if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def test_peers_of_the_vpn(tmp_path: Path) -> None:
    path = tmp_path / "vpn.json"
    peers = [
        {"name": 'odd"name', "latest_handshake": 1700000000, "rx_bytes": 5, "tx_bytes": 7},
        {"name": "silent", "latest_handshake": 0, "rx_bytes": 0, "tx_bytes": 0},
    ]
    path.write_text(json.dumps({"time": 1, "interface": "wg0", "peers": peers}))
    found = samples(program.wireguard(str(path)))
    prefix = "prime_spark_wireguard"
    assert found[f'{prefix}_latest_handshake_seconds{{peer="odd\\"name"}}'] == 1700000000
    assert found[f'{prefix}_latest_handshake_seconds{{peer="silent"}}'] == 0
    assert found[f'{prefix}_sent_bytes_total{{peer="odd\\"name"}}'] == 7
    assert program.wireguard(str(tmp_path / "none.json")) is None


def test_a_share_that_is_a_plain_directory_is_not_mounted(tmp_path: Path) -> None:
    found = samples(program.nas(str(tmp_path), 5, str(tmp_path / "probe")))
    assert found["prime_spark_nas_mounted"] == 0
    assert found["prime_spark_nas_responding"] == 0
    assert "prime_spark_nas_available_bytes" not in found


def test_a_mounted_file_system_responds(tmp_path: Path) -> None:
    found = samples(program.nas("/dev", 5, str(tmp_path / "probe")))
    assert found["prime_spark_nas_mounted"] == 1
    assert found["prime_spark_nas_responding"] == 1
    seen = os.statvfs("/dev")
    assert found["prime_spark_nas_size_bytes"] == seen.f_blocks * seen.f_frsize
    assert 0 <= found["prime_spark_nas_available_bytes"] <= found["prime_spark_nas_size_bytes"]


def test_a_share_that_hangs_costs_its_timeout_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The look cannot be killed, as one within the kernel: no second is sent after it."""
    probe = tmp_path / "probe"

    def hang(_: str) -> list[str]:
        time.sleep(60)
        return []

    monkeypatch.setattr(program.os, "listdir", hang)
    killed: list[int] = []
    monkeypatch.setattr(program.os, "kill", lambda pid, _: killed.append(pid))
    started = time.monotonic()
    assert not program.answers("/proc", 0.5, str(probe))
    assert time.monotonic() - started < 25
    (child,) = killed
    try:
        assert program.hanging(str(probe))
        started = time.monotonic()
        assert not program.answers("/proc", 30, str(probe))
        assert time.monotonic() - started < 25, "waited for a second look"
        assert killed == [child]
    finally:
        monkeypatch.undo()
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert not program.hanging(str(probe))
    assert program.answers("/proc", 5, str(probe)), "the next look is a new one"


def test_a_page_replaces_the_file_in_one_step(tmp_path: Path) -> None:
    page = program.Page()
    page.add("a_total", "counter", "What it counts", [({}, 1), ({"x": "y"}, 2)])
    page.write(str(tmp_path / "a.prom"))
    assert [path.name for path in tmp_path.iterdir()] == ["a.prom"]
    assert (tmp_path / "a.prom").stat().st_mode & 0o777 == 0o644
    assert (tmp_path / "a.prom").read_text().endswith('a_total 1\na_total{x="y"} 2\n')


def serve(path: Path, answers: dict[str, bytes]) -> None:
    """A stand-in for Docker's socket: one connection, the answers by path."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def run() -> None:
        connection, _ = listener.accept()
        with connection, connection.makefile("rwb") as stream:
            while line := stream.readline():
                while stream.readline().strip():
                    pass
                body = answers.get(line.split()[1].decode().partition("?")[0], b"")
                status = b"200 OK" if body else b"404 Not Found"
                stream.write(b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n" % (status, len(body)))
                stream.write(body)
                stream.flush()

    threading.Thread(target=run, daemon=True).start()


def test_containers(tmp_path: Path) -> None:
    def state(name: str, restarts: int, **values: Any) -> bytes:
        return json.dumps(
            {"Name": f"/{name}", "RestartCount": restarts, "State": {"Running": True, **values}}
        ).encode()

    serve(
        tmp_path / "socket",
        {
            "/containers/json": json.dumps([{"Id": i} for i in "abcd"]).encode(),
            "/containers/a/json": state("well", 0, Health={"Status": "starting"}),
            "/containers/b/json": state("ill", 3, Health={"Status": "unhealthy"}),
            "/containers/c/json": state("gone", 1, Running=False),
            # d went between the two questions.
        },
    )
    found = samples(program.containers(str(tmp_path / "socket")))
    running = "prime_spark_container_running"
    assert found[f'{running}{{container="well"}}'] == 1
    assert found[f'{running}{{container="ill"}}'] == 0
    assert found[f'{running}{{container="gone"}}'] == 0
    assert found['prime_spark_container_restarts_total{container="ill"}'] == 3
    assert len(found) == 6
    assert program.containers(str(tmp_path / "none")) is None


def test_one_process_renews_the_files_until_a_look_fails(tmp_path: Path) -> None:
    """It tells systemd after every round, and ends when a file can no longer be renewed."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listener.bind(str(tmp_path / "notify"))
    listener.settimeout(20)
    textfiles = tmp_path / "textfiles"
    textfiles.mkdir()
    # As the role's unit starts it.
    command = ["/usr/bin/python3", "-IS", str(PROGRAM), "--directory", str(textfiles)]
    command += ["--interval", "0.1"]
    # A share needs no server to be looked at: it is there, or it is not.
    command += ["--nas", "/proc"]
    environment = {**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify")}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE) as process:
        try:
            written = set()
            for _ in range(3):
                assert listener.recv(100) == b"READY=1\nWATCHDOG=1"
                written.add((textfiles / "nas.prom").stat().st_ino)
            assert len(written) > 1
            shutil.rmtree(textfiles)
            assert process.wait(20) == 1
        finally:
            process.kill()

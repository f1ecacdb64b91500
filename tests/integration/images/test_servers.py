"""Servers leave nothing behind, run without privileges and go with the process that made them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from tests.integration.servers import RedisServer, ServerError, redis_server

CHECKOUT = Path(__file__).resolve().parents[3]
DEADLINE = 10.0


def alive(pid: int) -> bool:
    """Whether a process runs; one that is dead and not yet reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def test_runs_without_privileges_in_its_own_namespaces() -> None:
    with redis_server() as server:
        seen = status(server.pid)
        assert set(seen["Uid"].split()) == set(seen["Gid"].split()) == {str(RedisServer.uid)}
        assert (int(seen["CapEff"], 16), seen["NoNewPrivs"], seen["Groups"]) == (0, "1", "")
        for namespace in ("mnt", "pid"):
            assert os.readlink(f"/proc/{server.pid}/ns/{namespace}") != os.readlink(
                f"/proc/self/ns/{namespace}"
            )
        mounts = Path(f"/proc/{server.pid}/mountinfo").read_text().splitlines()
        root = next(line.split() for line in mounts if line.split()[4] == "/")
        assert "ro" in root[5].split(",")


def test_leaves_nothing_behind() -> None:
    with redis_server() as server:
        pid, log = server.pid, server.log
        directory = Path(tempfile.gettempdir(), log.stem)
        assert log.exists()
        assert directory.is_dir()
        # Its mounts are its own: ours do not even show them.
        assert directory.name not in Path("/proc/self/mounts").read_text()
    assert not alive(pid)
    assert not log.exists()
    assert not directory.exists()


def test_dies_with_a_killed_process(tmp_path: Path) -> None:
    """No clean-up code runs after SIGKILL; the server has to go anyway."""
    code = (
        "import sys, time\n"
        "from tests.integration.servers import redis_server\n"
        "with redis_server() as server:\n"
        "    print(server.pid, server.log, flush=True)\n"
        "    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=CHECKOUT,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT), "TMPDIR": str(tmp_path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as owner:
        assert owner.stdout is not None
        answer = owner.stdout.readline().split()
        pid, log = int(answer[0]), Path(os.fsdecode(answer[1]))
        assert alive(pid)
        owner.send_signal(signal.SIGKILL)
        owner.wait()
    deadline = time.monotonic() + DEADLINE
    while alive(pid):
        assert time.monotonic() < deadline, "the server outlived its owner"
        time.sleep(0.02)
    log.unlink()


def test_outlives_the_thread_that_asked_for_it() -> None:
    with redis_server() as server:
        server.stop()
        thread = threading.Thread(target=server.start)
        thread.start()
        thread.join()
        # A death signal sent at the thread's end would have arrived before this answer does.
        assert server.run("redis-cli", "--version").startswith("redis-cli 8.")
        assert server.running


def test_a_failed_start_shows_the_log() -> None:
    with (
        pytest.raises(ServerError, match="no-such-setting") as failure,
        redis_server({"no-such-setting": "1"}),
    ):
        pass
    kept = Path(failure.value.__notes__[0].removeprefix("redis: log kept in "))
    assert "no-such-setting" in kept.read_text()
    kept.unlink()


def test_starting_twice_is_refused() -> None:
    with redis_server() as server, pytest.raises(ServerError, match="already running"):
        server.start()

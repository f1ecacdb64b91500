"""prime-spark-backup with a real PostgreSQL, restic and its storage server."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import secrets
import shutil
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
import bcrypt
import pytest
from tests.integration.servers import PostgresServer, postgres_server

from lab.common import LOGS
from lab.image_builds import root_path
from prime_spark.backup.postgres import Table, count_tables, differences
from support import Command, Daemon, eventually, free_port, running, sql

RESTIC = root_path("restic") / "usr/bin/restic"
REST_SERVER = root_path("restic") / "usr/bin/restic-rest-server"
SETTINGS = {"max_slot_wal_keep_size": "256MB", "wal_keep_size": "0"}


class Storage:
    """The storage server, append-only, with one user for each host."""

    def __init__(self, folder: Path, *hosts: str) -> None:
        self.data = folder / "repositories"
        self.data.mkdir()
        self.port = free_port()
        self.passwords = {host: secrets.token_urlsafe(12) for host in hosts}
        self._users = folder / "htpasswd"
        self._users.write_text(
            "".join(
                f"{host}:{bcrypt.hashpw(password.encode(), bcrypt.gensalt(4)).decode()}\n"
                for host, password in self.passwords.items()
            )
        )
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        argv = [str(REST_SERVER), "--append-only", "--private-repos", "--path", str(self.data)]
        argv += ["--htpasswd-file", str(self._users), "--listen", f"127.0.0.1:{self.port}"]
        self._process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        eventually(lambda: self.ask("GET", "/", "nobody", "") == 401, what="the storage server")

    def stop(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def url(self, host: str) -> str:
        return f"rest:http://127.0.0.1:{self.port}/{host}/"

    def ask(self, method: str, path: str, user: str, password: str) -> int:
        """Return the status of a request."""
        token = base64.b64encode(f"{user}:{password}".encode()).decode()
        url = f"http://127.0.0.1:{self.port}{path}"
        headers = {"Authorization": f"Basic {token}"}
        request = urllib.request.Request(url, method=method, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[Storage]:
    server = Storage(tmp_path, "here", "there")
    server.start()
    yield server
    server.stop()


def programs(server: PostgresServer, wal: Path) -> list[str]:
    """What runs the image's own programs against a server, with `wal` as /mnt."""
    root = root_path("timescale")
    script = 'mount --bind "$1" "$2/mnt"; r=$2; shift 2; exec chroot "$r" "$@"'
    argv = ["unshare", "--mount", "--", "/bin/sh", "-ec", script, "sh", str(wal), str(root)]
    argv += ["env", "PATH=/usr/lib/postgresql/current/bin:/usr/bin:/bin"]
    argv += [f"PGHOST={server.host}", f"PGPORT={server.port}", f"PGUSER={server.username}"]
    return [*argv, f"PGPASSWORD={server.password}"]


def backup_command(
    folder: Path, storage: Storage, server: PostgresServer | None = None, **settings: Any
) -> Command:
    wal = folder / "wal"
    wal.mkdir(exist_ok=True)
    config: dict[str, Any] = {
        "http": {"host": "127.0.0.1", "port": free_port()},
        "host": "here",
        "state_directory": str(folder),
        "restic": str(RESTIC),
        "repository": {
            "url": storage.url("here"),
            "username": "here",
            "credential": "storage",
            "key": {"credential": "key"},
        },
        "retry_seconds": 1,
        **settings,
    }
    if server is not None:
        config["postgres"] = {
            "database": {
                "command": programs(server, wal),
                "wal_directory": str(wal),
                "wal_path": "/mnt",
                "database": server.database,
                "wal_seconds": 1,
            }
        }
    secret = {"storage": storage.passwords["here"], "key": "a key"}
    return Command("backup", folder, config, secret)


@contextmanager
def recovered(into: Path, original: PostgresServer) -> Iterator[PostgresServer]:
    """A server on restored files, whose recovery has ended."""
    folder = into.parents[1]
    (folder / "data").rename(folder / "restored")
    log = LOGS / f"{folder.name}.log"
    server = PostgresServer(folder, log, SETTINGS)
    server.password = original.password
    shutil.rmtree(folder / "data")
    (folder / "restored").rename(folder / "data")
    try:
        server.start()
        eventually(lambda: not sql(server, "postgres", "SELECT pg_is_in_recovery()")[0][0])
        yield server
    except BaseException as error:
        error.add_note(server.log_tail())
        raise
    finally:
        server.kill()
        log.unlink(missing_ok=True)


def place(folder: Path) -> Path:
    """An empty directory of PostgreSQL's user, as a data directory is."""
    folder.mkdir(mode=0o755)
    into = folder / "data" / "cluster"
    into.mkdir(parents=True, mode=0o700)
    for path in (into.parent, into):
        os.chown(path, PostgresServer.uid, PostgresServer.uid)
    return into


class Writer(threading.Thread):
    """Stores rows until told to stop, and remembers when each was acknowledged."""

    def __init__(self, server: PostgresServer) -> None:
        super().__init__(daemon=True)
        self.server = server
        self.acknowledged: list[tuple[int, float]] = []
        self.stopping = threading.Event()

    def run(self) -> None:
        asyncio.run(self._store())

    async def _store(self) -> None:
        connection = await asyncpg.connect(self.server.dsn)
        number = 0
        while not self.stopping.is_set():
            number += 1
            await connection.execute(
                "INSERT INTO samples SELECT now(), $1, g FROM generate_series(1, 50) g", number
            )
            self.acknowledged.append((number, time.time()))
        await connection.close()


def until(text: float) -> str:
    return datetime.fromtimestamp(text, UTC).isoformat()


def stored_after(daemon: Daemon, name: str, moment: float) -> bool:
    line = f'prime_spark_backup_last_success_timestamp_seconds{{backup="{name}"}}'
    for metric in daemon.get("/metrics")[1].splitlines():
        if metric.startswith(line):
            return float(metric.rsplit(" ", 1)[1]) > moment
    return False


@pytest.fixture
def database() -> Iterator[PostgresServer]:
    with postgres_server(SETTINGS) as server:
        sql(server, "postgres", "CREATE EXTENSION IF NOT EXISTS timescaledb")
        sql(
            server,
            "postgres",
            "CREATE TABLE samples (time timestamptz NOT NULL, batch int, number int)",
        )
        sql(server, "postgres", "SELECT create_hypertable('samples', by_range('time'))")
        yield server


def batches(server: PostgresServer) -> dict[int, int]:
    rows = sql(server, "postgres", "SELECT batch, count(*) FROM samples GROUP BY batch")
    return {row[0]: row[1] for row in rows}


def test_a_database_under_load_is_restored_to_a_second_and_to_the_newest(
    tmp_path: Path, storage: Storage, database: PostgresServer
) -> None:
    command = backup_command(tmp_path, storage, database)
    writer = Writer(database)
    writer.start()
    with running(command) as daemon:
        eventually(lambda: stored_after(daemon, "database-base", 0), 90, "the base backup")
        half = time.time()
        eventually(lambda: stored_after(daemon, "database-wal", half + 1), 60, "WAL")
        end = time.time()
        count = len(writer.acknowledged)
        eventually(lambda: len(writer.acknowledged) > count + 2)
        eventually(lambda: stored_after(daemon, "database-wal", end + 3), 60, "WAL")
    writer.stopping.set()
    writer.join()
    database.kill()

    # To a second: all that was acknowledged before, whole batches, nothing later.
    into = place(tmp_path / "second")
    told = command.answer("restore", "database", "--into", str(into), "--until", until(half))
    assert datetime.fromisoformat(told["until"]).timestamp() == pytest.approx(half, abs=0.001)
    with recovered(into, database) as server:
        found = batches(server)
    before = [number for number, moment in writer.acknowledged if moment <= half]
    after = [number for number, moment in writer.acknowledged if moment > half]
    assert set(before) <= set(found)
    assert set(found) <= {*before, after[0]}  # one may have been committed and not acknowledged
    assert set(found.values()) == {50}

    # To the newest: all that was acknowledged when WAL was stored last.
    into = place(tmp_path / "newest")
    command.answer("restore", "database", "--into", str(into))
    with recovered(into, database) as server:
        found = batches(server)
    assert {number for number, moment in writer.acknowledged if moment <= end} <= set(found)
    assert set(found.values()) == {50}
    assert len(found) > len(before)


def test_a_restore_to_the_manifests_point_holds_exactly_what_the_manifest_says(
    tmp_path: Path, storage: Storage, database: PostgresServer
) -> None:
    command = backup_command(tmp_path, storage, database)
    writer = Writer(database)
    writer.start()
    with running(command) as daemon:
        eventually(lambda: stored_after(daemon, "database-base", 0), 90, "the base backup")
    writer.stopping.set()
    writer.join()
    into = place(tmp_path / "point")
    told = command.answer("restore", "database", "--into", str(into), "--point")
    wal = tmp_path / "wal"
    with recovered(into, database) as server:
        found = asyncio.run(count_tables(programs(server, wal), "postgres"))
        expected = {name: Table(**table) for name, table in told["tables"].items()}
        assert expected["samples"].rows > 0
        assert differences(expected, found) == []
        sql(server, "postgres", "DELETE FROM samples WHERE batch = 1 AND number = 1")
        found = asyncio.run(count_tables(programs(server, wal), "postgres"))
        (sentence,) = differences(expected, found)
        assert sentence.startswith("samples: ")


def test_who_may_add_can_neither_delete_nor_overwrite_nor_read_anothers(
    tmp_path: Path, storage: Storage
) -> None:
    source = tmp_path / "file"
    source.write_text("content")
    command = backup_command(tmp_path, storage, copies={"files": {"paths": [str(source)]}})
    command.answer("run", "files")
    kept = {path: path.read_bytes() for path in storage.data.rglob("*") if path.is_file()}
    snapshot = next((storage.data / "here" / "snapshots").iterdir()).name
    data = next(path for path in (storage.data / "here" / "data").rglob("*") if path.is_file()).name
    own = ("here", storage.passwords["here"])
    for path in (f"/here/snapshots/{snapshot}", f"/here/data/{data}", "/here/config"):
        assert storage.ask("GET", path, *own) == 200
        assert storage.ask("DELETE", path, *own) == 403
        assert storage.ask("POST", path, *own) in {403, 405}
        assert storage.ask("GET", path, "there", storage.passwords["there"]) == 401
    assert {path: path.read_bytes() for path in kept} == kept


def test_a_storage_server_that_is_away_is_caught_up_with(tmp_path: Path, storage: Storage) -> None:
    source = tmp_path / "file"
    source.write_text("first")
    command = backup_command(
        tmp_path, storage, copies={"files": {"paths": [str(source)], "seconds": 1}}
    )
    with running(command) as daemon:
        eventually(lambda: stored_after(daemon, "files", 0), what="the first copy")
        storage.stop()
        eventually(lambda: daemon.metric("prime_spark_backup_failures_total") > 0)
        assert daemon.health()["status"] == "degraded"
        source.write_text("second")
        back = time.time()
        storage.start()
        eventually(lambda: stored_after(daemon, "files", back), what="a copy")
        eventually(daemon.healthy)
    into = tmp_path / "into"
    into.mkdir()
    command.answer("restore-copy", "files", "--into", str(into))
    assert (into / str(source).lstrip("/")).read_text() == "second"


def test_a_corrupt_repository_is_found(tmp_path: Path, storage: Storage) -> None:
    source = tmp_path / "file"
    source.write_bytes(os.urandom(100_000))
    command = backup_command(tmp_path, storage, copies={"files": {"paths": [str(source)]}})
    command.answer("run", "files")
    assert command.answer("check", "--share", "100%") == {"checked": "100%"}
    packs = [path for path in (storage.data / "here" / "data").rglob("*") if path.is_file()]
    largest = max(packs, key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.chmod(0o600)
    largest.write_bytes(content)
    assert "error" in command.run("check", "--share", "100%", expect=1).stderr
    assert json.loads(command.run("list", "--json").stdout)["files"]

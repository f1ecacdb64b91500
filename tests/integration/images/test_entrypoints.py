"""The images' entrypoints, run as Docker runs them: as root in the image's own root."""

from __future__ import annotations

import subprocess
from pathlib import Path

from lab import image_builds as images

# A writable copy of the root that vanishes with the namespace; no network but an idle loopback.
CONTAINER = """
root=$1 work=$2 data=$3 place=$4; shift 4
mount -t tmpfs tmpfs "$work"
mkdir "$work/upper" "$work/work" "$work/root"
mount -t overlay -o "lowerdir=$root,upperdir=$work/upper,workdir=$work/work" overlay "$work/root"
mount -t proc proc "$work/root/proc"
mount --rbind /dev "$work/root/dev"
mount --bind "$data" "$work/root$place"
exec chroot "$work/root" "$@"
"""


def container(
    name: str, tmp_path: Path, place: str, *command: str, stdin: str = "", check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run a command as root in an image's root; `tmp_path`/data is mounted at `place`."""
    work = tmp_path / "work"
    work.mkdir(exist_ok=True)
    (tmp_path / "data").mkdir(exist_ok=True)
    isolated = ["unshare", "--mount", "--pid", "--net", "--fork", "--kill-child", "--"]
    paths = [str(images.root_path(name)), str(work), str(tmp_path / "data"), place]
    result = subprocess.run(
        [*isolated, "/bin/sh", "-euc", CONTAINER, "container", *paths, *command],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
    )
    if check:
        assert result.returncode == 0, result.stdout + result.stderr
    return result


def timescale(tmp_path: Path, *command: str, stdin: str = "", check: bool = True) -> str:
    path = "/usr/lib/postgresql/current/bin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    environment = [
        f"PATH={path}",
        "PGDATA=/var/lib/postgresql/data/cluster",
        "POSTGRES_PASSWORD_FILE=/var/lib/postgresql/data/secret",
        "POSTGRES_DB=prime-spark",
        "POSTGRES_INITDB_ARGS=--data-checksums --no-sync --auth-local=trust",
    ]
    argv = ["env", "-i", *environment, "docker-entrypoint.sh", *command]
    result = container(
        "timescale", tmp_path, "/var/lib/postgresql/data", *argv, stdin=stdin, check=check
    )
    return result.stdout + result.stderr


def test_timescale_creates_its_cluster_once(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    secret = data / "secret"
    secret.write_text("correct horse\n")
    secret.chmod(0o600)  # root's alone, as a Docker secret may be

    first = timescale(tmp_path, "postgres", "--version")
    assert "postgres (PostgreSQL) 17." in first
    assert "Data page checksums are enabled" in first
    cluster = data / "cluster"
    assert {path.stat().st_uid for path in (cluster, *cluster.rglob("*"))} == {70}
    assert cluster.stat().st_mode & 0o777 == 0o700
    assert (cluster / "pg_hba.conf").read_text().endswith("\nhost all all all scram-sha-256\n")

    # The second start leaves the cluster alone, and gives up root before the server runs: it
    # would refuse to run otherwise.
    single = ("postgres", "--single", "-D", "/var/lib/postgresql/data/cluster", "prime-spark")
    query = "SELECT rolpassword LIKE 'SCRAM-SHA-256$%' AS scrambled FROM pg_authid WHERE oid = 10"
    second = timescale(tmp_path, *single, stdin=query + "\n")
    assert "creating subdirectories" not in second
    assert 'scrambled = "t"' in second


def test_timescale_wants_a_password(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "secret").touch()
    output = timescale(tmp_path, "postgres", "--version", check=False)
    assert "the first start needs POSTGRES_PASSWORD_FILE" in output
    assert not (tmp_path / "data" / "cluster" / "PG_VERSION").exists()


def test_redis_takes_over_its_data(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dump.rdb").touch()
    answer = container("redis", tmp_path, "/data", "docker-entrypoint.sh", "--version")
    assert answer.stdout.startswith("Redis server v=8.")
    assert {path.stat().st_uid for path in (tmp_path / "data").iterdir()} == {999}


def test_kafka_has_the_upstream_layout(tmp_path: Path) -> None:
    listing = (
        "command -v java && ls /opt/kafka/bin && id -u appuser && stat -c %u /var/lib/kafka/data"
    )
    environment = ["env", "-i", "PATH=/opt/java/openjdk/bin:/usr/bin:/bin"]
    answer = container("kafka", tmp_path, "/mnt", *environment, "sh", "-euc", listing)
    lines = answer.stdout.split()
    assert lines[0] == "/opt/java/openjdk/bin/java"
    assert lines[-2:] == ["1000", "1000"]
    assert {
        "kafka-server-start.sh",
        "kafka-storage.sh",
        "kafka-topics.sh",
        "kafka-configs.sh",
        "kafka-acls.sh",
        "kafka-run-class.sh",
    } <= set(lines)

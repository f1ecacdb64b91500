"""Faults of the lab, each really caused, and the alert that has to tell of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from tests.system.fleet import fleet
from tests.system.fleet.fleet import (
    connect,
    execute,
    members,
    probe,
    query,
    service_python,
    setting,
    shell,
    vpn_address,
)
from tests.system.fleet.nas import CLIENTS, SENTINEL, SHARE, UNIT

BURNER = "alert-test-burner"


def run(name: str, script: str, *arguments: str) -> str:
    """Run a script on a host."""
    return shell(connect(name), script, *arguments)


def first(group: str) -> str:
    """The first host of a group."""
    return members(group)[0]


def container(project: str, action: str) -> None:
    """Stop, start, pause or unpause a project's containers."""
    run(first(project), 'docker compose --project-name "$1" "$2"', project, action)


def log_in() -> None:
    """A few requests that need Redis, with a password that is wrong."""
    url = f"http://{vpn_address(first('api'))}:{setting(first('api'), 'api', 'api_port')}"
    probe(connect(first("api")), "log_in", url, "6")


def burn(name: str, script: str, *properties: str) -> None:
    """A unit that uses up a host's processor or memory, bounded, and ends by itself."""
    options = " ".join(f"--property={p}" for p in ("RuntimeMaxSec=300", *properties))
    run(name, f'systemd-run --quiet --unit={BURNER} {options} python3 -c "$1"', script)


DISK = "/srv/alert-test"


def small_disk(name: str) -> None:
    """An ext4 of 64 MiB on a host, then full; by FUSE, as hosts of the lab have no loop devices."""
    script = """
        set -e
        command -v mkfs.ext4 >/dev/null || touch "$1.mkfs"
        apt-get install -qq -y --no-install-recommends fuse2fs e2fsprogs >/dev/null 2>&1
        mkdir -p "$1"; truncate -s 64M "$1.img"; mkfs.ext4 -q -F "$1.img"
        fuse2fs -o rw,allow_other "$1.img" "$1" >/dev/null 2>&1
        dd if=/dev/zero of="$1/filler" bs=1M count=50 status=none
    """
    run(name, script, DISK)


def no_small_disk(name: str) -> None:
    """Put it away."""
    script = """
        umount "$1"; rmdir "$1"; rm -f "$1.img"
        [ ! -e "$1.mkfs" ] || apt-get purge -qq -y e2fsprogs >/dev/null 2>&1
        apt-get purge -qq -y --autoremove fuse2fs >/dev/null 2>&1
        rm -f "$1.mkfs"
    """
    run(name, script, DISK)


def values_in_redis(what: str) -> None:
    """Fill Redis with values until it takes no more, or remove them."""
    name = first("redis")
    server = f"{vpn_address(name)}:{setting(name, 'redis', 'redis_port')}"
    probe(connect(first("api")), "redis_filler", server, what, python=service_python("api"))


def fill_nas() -> None:
    """A small disk in the share's place, filled."""
    script = """
        set -e
        gid=$(stat -c %g "$1")
        mount -t tmpfs -o "size=4m,mode=2770,gid=$gid" alert-test "$1"
        touch "$1/$2"
        dd if=/dev/zero of="$1/filler" bs=64k 2>/dev/null || true
    """
    run(first("nas_server"), script, SHARE, SENTINEL)


def no_small_nas() -> None:
    """The share as it was; whoever has the small one open lets it go."""
    run(first("nas_server"), 'umount --lazy "$1"', SHARE)
    for name in CLIENTS:
        run(name, 'systemctl stop "$1"', f"{UNIT}.mount")


SMALL = "alert_test"
# Below a tmpfs: the rest of the container is read-only.
SMALL_PLACE = "/tmp/alert-test"


def database_container(script: str) -> None:
    """Run a script in the database's container, as its user."""
    command = "docker compose --project-name timescale exec -T --user postgres timescale"
    run(first("timescale"), f'{command} sh -c "$1" sh "$2"', script, SMALL_PLACE)


def small_database(action: str) -> None:
    """Mount or unmount a small disk in the container."""
    name = first("timescale")
    probe(connect(name), "container_disk", action, "timescale-timescale-1", SMALL_PLACE, "32m")


def fill_database() -> None:
    """Today's samples on a small disk, filled."""
    small_database("mount")
    execute(f"CREATE TABLESPACE {SMALL} LOCATION '{SMALL_PLACE}'")
    (chunk,) = query(
        "SELECT format('%I.%I', chunk_schema, chunk_name) AS name"
        " FROM timescaledb_information.chunks WHERE hypertable_name = 'device_metrics'"
        " AND range_start <= now() AND now() < range_end"
    )
    execute(f"ALTER TABLE {chunk['name']} SET TABLESPACE {SMALL}")
    database_container('dd if=/dev/zero of="$1/filler" bs=8k 2>/dev/null || true')


def no_small_database() -> None:
    """The samples where they were."""
    try:
        execute(f"ALTER TABLE ALL IN TABLESPACE {SMALL} SET TABLESPACE pg_default")
        execute(f"DROP TABLESPACE {SMALL}")
    finally:
        small_database("unmount")


def nas_sessions(signal: str) -> None:
    """Signal what serves the share: frozen, the NAS still acknowledges every packet."""
    run(first("nas_server"), 'pkill -"$1" -f "^sshd.*@internal-sftp" || true', signal)


BUSY = "import os\nfor _ in range(os.cpu_count() - 1):\n    os.fork() or None\nwhile True: pass"
FULL = "import time\nheld = b'x' * (560 << 20)\ntime.sleep(600)"


@dataclass(frozen=True)
class Fault:
    """`cause` and `repair` it; `during` is done again and again meanwhile."""

    alert: str
    labels: Mapping[str, str]
    cause: Callable[[], object]
    repair: Callable[[], object]
    during: Callable[[], object] = lambda: None
    # What is left to be put away once the alert is resolved.
    tidy: Callable[[], object] = lambda: None
    fires: float = 120.0
    resolves: float = 180.0
    # Who does not hear of the alert from Alertmanager.
    at: str = field(default="receiver")


def faults() -> dict[str, Fault]:
    """All faults by the names of faults.yml."""
    edge = first("spark_agent")
    return {
        "API stopped": Fault(
            "ServiceDown",
            {"service": "api"},
            lambda: run(first("api"), "systemctl stop prime-spark-api"),
            lambda: run(first("api"), "systemctl start prime-spark-api"),
        ),
        "5xx burst": Fault(
            "HighErrorRate",
            {"service": "api"},
            lambda: container("redis", "stop"),
            lambda: container("redis", "start"),
            log_in,
        ),
        "slow API": Fault(
            "HighAPILatency",
            {"service": "api"},
            lambda: container("redis", "pause"),
            lambda: container("redis", "unpause"),
            log_in,
        ),
        "CPU busy": Fault(
            "HighCPUUsage",
            {"host": edge},
            lambda: burn(edge, BUSY),
            lambda: run(edge, f"systemctl stop {BURNER}"),
        ),
        "memory filled": Fault(
            "HighMemoryUsage",
            {"host": edge},
            lambda: burn(edge, FULL, "MemoryMax=600M"),
            lambda: run(edge, f"systemctl stop {BURNER}"),
        ),
        "small disk filled": Fault(
            "DiskSpaceLow",
            {"host": edge, "mountpoint": DISK},
            lambda: small_disk(edge),
            lambda: run(edge, f"rm {DISK}/filler"),
            tidy=lambda: no_small_disk(edge),
        ),
        "Redis filled": Fault(
            "RedisAlmostFull",
            {"host": first("redis")},
            lambda: values_in_redis("fill"),
            lambda: values_in_redis("remove"),
        ),
        "NAS filled": Fault(
            "NASSpaceLow",
            {"host": first("nas")},
            fill_nas,
            lambda: run(first("nas_server"), f"rm {SHARE}/filler"),
            tidy=no_small_nas,
        ),
        "database filled": Fault(
            "DatabaseWritesFailing",
            {"host": first("ingest")},
            fill_database,
            lambda: database_container('rm -f "$1/filler"'),
            tidy=no_small_database,
            # Until the last page is full, too.
            fires=300,
        ),
        "consumer stopped": Fault(
            "KafkaConsumerLag",
            {"consumergroup": "prime-spark-ingest"},
            lambda: run(first("ingest"), "systemctl stop prime-spark-ingest"),
            lambda: run(first("ingest"), "systemctl start prime-spark-ingest"),
            fires=240,
        ),
        "VPN peer cut": Fault(
            "WireGuardPeerSilent",
            {"peer": edge},
            lambda: fleet.lab("cut", edge),
            lambda: fleet.lab("heal", edge),
            fires=400,
            resolves=240,
        ),
        "NAS frozen": Fault(
            "NASNotResponding",
            {},
            lambda: nas_sessions("STOP"),
            lambda: nas_sessions("CONT"),
            # A session that starts meanwhile is frozen, too.
            during=lambda: nas_sessions("STOP"),
        ),
        "telemetry stopped": Fault(
            "TelemetryStale",
            {"device_id": edge},
            lambda: run(edge, "systemctl stop prime-spark-telemetry"),
            lambda: run(edge, "systemctl start prime-spark-telemetry"),
        ),
        "Prometheus stopped": Fault(
            "DeadMansSwitch",
            {},
            lambda: run(first("monitoring"), "docker compose -p monitoring stop prometheus"),
            lambda: run(first("monitoring"), "docker compose -p monitoring start prometheus"),
            at="dead-man receiver",
        ),
    }


def alarm() -> bool:
    """Whether the dead-man receiver has raised its alarm."""
    name = first("deadman")
    url = f"http://{vpn_address(name)}:{setting(name, 'deadman', 'deadman_port')}/metrics"
    body = probe(connect(name), "http_get", url)[url]["body"]
    return "prime_spark_deadman_alarm 1.0" in body


@contextmanager
def caused(fault: Fault) -> Iterator[None]:
    """The fault, repaired when the block ends in whatever way."""
    try:
        fault.cause()
        yield
    finally:
        fault.repair()

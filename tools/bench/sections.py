"""What is measured: one section per benchmark, and how its figures stand in the documents.

A benchmark is a make target whose output ends with lines of ``key=value`` pairs. In a table
``{section.key}`` is replaced by the value: ``:time`` writes seconds as people say them, any other
format is Python's. A value that is missing is "not measured".
"""

from __future__ import annotations

import dataclasses

# Without these two the lab and the roles are what they were.
FLEET = (
    "ansible.cfg",
    "inventories",
    "lab",
    "playbooks",
    "plugins",
    "meta",
    "collections",
    "roles",
    "site.yml",
    "files",
)
SERVICES = ("files/python_services", "lab/images", "tests/integration/servers.py")


@dataclasses.dataclass(frozen=True)
class Section:
    """One benchmark.

    ``target`` is the make target, ``options`` what it is given besides; ``sources`` are the paths
    whose content decides whether a result is still that of this tree. ``alone`` sections take so
    long that they run only when they are named.
    """

    name: str
    target: str
    says: str
    sources: tuple[str, ...]
    options: tuple[str, ...] = ()
    alone: bool = False

    @property
    def command(self) -> str:
        """The command as a person types it."""
        return " ".join(["make", self.target, *self.options])


@dataclasses.dataclass(frozen=True)
class Table:
    """A table between ``<!-- bench:NAME -->`` and ``<!-- /bench:NAME -->`` in ``document``."""

    name: str
    document: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    always: bool = False  # also where nothing of it was measured: the rows say more than figures


SECTIONS = {
    section.name: section
    for section in (
        Section("ingest", "bench-ingest", "Kafka to committed rows", SERVICES),
        Section("telemetry", "bench-telemetry", "the collector on a small host", SERVICES),
        Section("api", "bench-api", "the API against a bare application", SERVICES),
        Section("memory", "bench-memory", "a memory get without Kafka", SERVICES),
        Section("demo", "bench-demo", "the whole lab, from nothing", FLEET),
        Section("converge", "bench-converge", "site.yml against pyinfra", (*FLEET, "tools/bench")),
        Section("idle", "bench-idle", "the fleet at rest", (*FLEET, "tools/bench_idle.py")),
        Section(
            "fleet", "bench-fleet", "fifty light hosts", (*FLEET, "tools/bench"), ("HOSTS=50",)
        ),
        Section("check", "bench-check", "make check", (*FLEET, "tests", "tools")),
        Section("test", "bench-test", "make test", (*FLEET, "tests", "tools"), alone=True),
    )
}

_API_REQUESTS = {
    "health": "`/health`",
    "me": "`/api/auth/me`",
    "memory_get": "memory get",
    "memory_set": "memory set",
    "generate": "generate, from the cache",
}


def _api_rows() -> tuple[tuple[str, ...], ...]:
    rows = []
    for request, title in _API_REQUESTS.items():
        for connections in (1, 16, 64):
            key = f"api.{request}_{connections}"
            figures = ("rate", "p99", "base_rate", "base_p99", "x", "cpu")
            rows.append((title, str(connections), *(f"{{{key}_{name}}}" for name in figures)))
    return tuple(rows)


PERFORMANCE = "docs/performance.md"

TABLES = (
    Table(
        "times",
        PERFORMANCE,
        ("command", "what it does", "2 cores"),
        (
            (
                "`make demo`, nothing cached",
                "base systems, images, hosts, the whole site",
                "{demo.nothing_cached_seconds:time}",
            ),
            (
                "`make demo`, images cached",
                "bare hosts, the whole site",
                "{demo.images_cached_seconds:time}",
            ),
            (
                "`make demo`, disks kept",
                "boots, finds nothing to change",
                "{demo.disks_kept_seconds:time}",
            ),
            (
                "`make check`",
                "lint, types, syntax, unit tests; no servers, no root",
                "{check.seconds:time}",
            ),
            (
                "`make test`",
                "all of it from bare hosts, images cached, with a short form of every fault",
                "{test.seconds:time}",
            ),
            ("", "memory of the hosts after the second", "{demo.memory_gib} GiB"),
            ("", "disk of the lab after the second", "{demo.disk_gib} GiB"),
        ),
        always=True,
    ),
    Table(
        "converge",
        PERFORMANCE,
        ("a run that finds nothing to change", "seconds", "of pyinfra's"),
        (
            ("pyinfra, all five hosts", "{converge.pyinfra_seconds}", "1"),
            (
                "`ansible-playbook site.yml --skip-tags verify`",
                "{converge.seconds}",
                "{converge.ratio}",
            ),
            ("`ansible-playbook site.yml`", "{converge.with_verify_seconds}", ""),
            (
                "`ansible-playbook site.yml --tags wireguard --limit primecore1`",
                "{converge.tag_seconds}",
                "{converge.tag_ratio}",
            ),
            (
                "`ansible-playbook site.yml --tags verify`",
                "{converge.verify_seconds}",
                "{converge.verify_ratio}",
            ),
            ("module runs on hosts, of the second line", "{converge.module_runs}", ""),
            ("processor seconds on the controller, of it", "{converge.controller_cpu}", ""),
        ),
    ),
    Table(
        "demo",
        PERFORMANCE,
        ("what", "seconds"),
        (
            ("nothing cached", "{demo.nothing_cached_seconds:.0f}"),
            ("images cached, hosts bare", "{demo.images_cached_seconds:.0f}"),
            ("disks kept", "{demo.disks_kept_seconds:.0f}"),
        ),
    ),
    Table(
        "idle",
        PERFORMANCE,
        ("with the lab's intervals", "figure"),
        (
            ("cores, all five hosts", "{idle.cores}"),
            ("cores, control-pc-1", "{idle.control_pc_1}"),
            ("process starts a second", "{idle.process_starts_per_second}"),
        ),
    ),
    Table(
        "fleet",
        PERFORMANCE,
        ("seconds per host, {fleet.hosts} light hosts and the hub", "ours", "pyinfra"),
        (
            ("first run", "{fleet.first}", ""),
            ("nothing to change", "{fleet.unchanged}", "{fleet.pyinfra_unchanged}"),
            ("nothing to change, {fleet.few_hosts} hosts", "{fleet.few_unchanged}", ""),
            ("one variable changed", "{fleet.changed_one}", "{fleet.pyinfra_changed_one}"),
        ),
    ),
    Table(
        "check",
        PERFORMANCE,
        ("command", "seconds"),
        (("`make check`", "{check.seconds:.0f}"),),
    ),
    Table(
        "test",
        PERFORMANCE,
        ("command", "seconds"),
        (("`make test`", "{test.seconds:.0f}"),),
    ),
    Table(
        "ingest",
        PERFORMANCE,
        ("way", "rows/s"),
        (
            ("one INSERT per row, prepared", "{ingest.single_rows_per_second:,}"),
            ("executemany, 10,000 rows per transaction", "{ingest.executemany_rows_per_second:,}"),
            ("**prime-spark-ingest, from Kafka**", "{ingest.rows_per_second:,}"),
            ("COPY and upsert of ready-made bytes, no Kafka", "{ingest.copy_rows_per_second:,}"),
            (
                "ratio to COPY, to single rows",
                "{ingest.ratio_to_copy_limit}, {ingest.ratio_to_single_row}",
            ),
            ("CPU seconds per million rows", "{ingest.cpu_seconds_per_million_rows}"),
            ("MiB of memory at its peak", "{ingest.peak_mib}"),
        ),
    ),
    Table(
        "telemetry",
        PERFORMANCE,
        ("what", "figure"),
        (
            ("a sample taken, buffered and sent", "{telemetry.sample_cpu_ms} ms of CPU"),
            ("memory while sampling, at its peak", "{telemetry.sampling_peak_mib} MiB"),
            (
                "replay of {telemetry.replay_samples:,} samples",
                "{telemetry.replay_samples_per_second:,} samples/s,"
                " {telemetry.replay_cpu_us} µs of CPU each,"
                " {telemetry.replay_peak_mib} MiB at its peak",
            ),
        ),
    ),
    Table(
        "api",
        PERFORMANCE,
        ("request", "connections", "ours", "p99", "bare", "p99", "bare / ours", "processor time"),
        (
            *_api_rows(),
            (
                "p99 of a memory get, Kafka stopped / up",
                "4",
                *[""] * 4,
                "{api.memory_get_p99_without_kafka}",
                "",
            ),
        ),
    ),
    Table(
        "memory",
        PERFORMANCE,
        ("p99 of a memory get", "figure"),
        (
            ("Kafka up", "{memory.memory_get_p99_kafka_up_ms} ms"),
            ("Kafka stopped", "{memory.memory_get_p99_kafka_down_ms} ms"),
            ("ratio", "{memory.ratio}"),
        ),
    ),
)

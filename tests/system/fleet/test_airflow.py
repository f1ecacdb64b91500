"""S6: Airflow on the fleet. The scheduler runs the DAG, whose rows arrive without ingest."""

from __future__ import annotations

from datetime import UTC, datetime

from testinfra.host import Host

from tests.system.fleet import fleet
from tests.system.fleet.fleet import (
    connect,
    members,
    name_of,
    on,
    probe,
    query,
    setting,
    shell,
    vpn_address,
)

# A cron expression has no shorter interval than a minute; then a task takes its time to start.
RUN_SECONDS = 60 + 45
METRICS = {"cpu_percent", "memory_percent", "disk_percent"}
PARTS = {"api-server", "scheduler", "dag-processor"}


def metadata(sql: str) -> list[list[str]]:
    """Rows of a query to Airflow's metadata, asked as the superuser of its server."""
    (name,) = members("timescale")
    script = (
        "docker compose --project-name timescale exec -T --user postgres timescale "
        'psql --no-psqlrc --quiet --tuples-only --no-align --command "$1" airflow'
    )
    return [line.split("|") for line in shell(connect(name), script, sql).splitlines()]


@on("airflow")
def test_every_part_runs_healthy(host: Host) -> None:
    script = (
        "docker ps --filter label=com.docker.compose.project=airflow"
        " --format '{{.Label \"com.docker.compose.service\"}} {{.Status}}'"
    )

    def healthy() -> set[str]:
        lines = shell(host, script).splitlines()
        return {line.split()[0] for line in lines if "(healthy)" in line}

    fleet.wait_until("every part of Airflow", healthy, 60, lambda parts: parts == PARTS)


@on("airflow")
def test_nobody_gets_in_without_the_password_and_the_operator_does(host: Host) -> None:
    name = name_of(host)
    place = f"{vpn_address(name)}:{setting(name, 'airflow', 'airflow_port')}"
    assert probe(host, "airflow_access", place) == {
        "stranger": 401,
        "wrong password": 401,
        "operator": 200,
        "dags": ["edge_to_cloud_sync"],
    }


def test_the_scheduler_runs_the_dag_on_its_schedule() -> None:
    started = datetime.now(UTC)

    def states() -> list[list[str]]:
        return metadata(
            "SELECT state FROM dag_run WHERE dag_id = 'edge_to_cloud_sync'"
            f" AND run_type = 'scheduled' AND start_date > '{started.isoformat()}'"
        )

    fleet.wait_until(
        "a scheduled run that succeeds", states, RUN_SECONDS, lambda rows: ["success"] in rows
    )


def test_samples_arrive_by_the_dag_while_ingest_is_stopped() -> None:
    (name,) = members("ingest")
    host = connect(name)
    shell(host, "systemctl stop prime-spark-ingest.service")
    try:
        stopped = datetime.now(UTC)

        def rows() -> set[tuple[str, str]]:
            found = query(
                "SELECT device_id, metric_name FROM device_metrics"
                f" WHERE time > '{stopped.isoformat()}'"
            )
            return {(row["device_id"], row["metric_name"]) for row in found}

        wanted = {(device, metric) for device in members("telemetry") for metric in METRICS}
        fleet.wait_until(
            "rows of every device by the DAG", rows, RUN_SECONDS, lambda seen: wanted <= seen
        )
    finally:
        shell(host, "systemctl start prime-spark-ingest.service")
    # Ingest makes up for what it missed; what the DAG has stored is there once.
    twice = query(
        "SELECT device_id FROM device_metrics"
        f" WHERE time > '{stopped.isoformat()}' GROUP BY device_id, metric_name, time"
        " HAVING count(*) > 1"
    )
    assert twice == []


@on("airflow")
def test_old_runs_are_forgotten_and_the_others_kept(host: Host) -> None:
    runs = "SELECT run_id FROM dag_run WHERE dag_id = 'edge_to_cloud_sync' AND state = 'success'"
    old, kept = [row[0] for row in metadata(f"{runs} ORDER BY start_date LIMIT 2")]
    for table in ("dag_run", "task_instance"):
        metadata(
            f"UPDATE {table} SET start_date = start_date - interval '60 days'"
            f" WHERE dag_id = 'edge_to_cloud_sync' AND run_id = '{old}'"
        )
    logs = setting(name_of(host), "airflow", "airflow_data_directory")
    log = f"{logs}/old.log"
    shell(host, 'touch --date "60 days ago" "$1"', log)
    shell(host, "systemctl start prime-spark-airflow-clean.service", seconds=300)
    left = {row[0] for row in metadata(runs)}
    assert old not in left
    assert kept in left
    assert not host.file(log).exists
    assert host.service("prime-spark-airflow-clean.timer").is_enabled

"""The newest sample of every device, from Redis at the edge into TimescaleDB in the cloud.

The work is `prime_spark.pipeline`; this file is its schedule. What it reads at parse time are
environment variables, written by the role `airflow`:

    PRIME_SPARK_PIPELINE_CONFIG         configuration of the pipeline (JSON)
    PRIME_SPARK_PIPELINE_SCHEDULE       cron expression, every 15 minutes by default
    PRIME_SPARK_PIPELINE_RETRY_SECONDS  delay before each of the 3 retries, 300 by default
"""

from __future__ import annotations

import logging
import os
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path

from airflow.sdk import dag, task

CONFIG = os.environ.get("PRIME_SPARK_PIPELINE_CONFIG", "/opt/prime-spark/pipeline/config.json")
SCHEDULE = os.environ.get("PRIME_SPARK_PIPELINE_SCHEDULE", "*/15 * * * *")
RETRY_SECONDS = float(os.environ.get("PRIME_SPARK_PIPELINE_RETRY_SECONDS", "300"))


@dag(
    dag_id="edge_to_cloud_sync",
    schedule=SCHEDULE,
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    # A hash holds the newest sample only: a run that was missed has nothing to make up for.
    catchup=False,
    max_active_runs=1,
    dagrun_timeout=timedelta(hours=1),
    default_args={"retries": 3, "retry_delay": timedelta(seconds=RETRY_SECONDS)},
    tags=["prime-spark"],
    doc_md=__doc__,
)
def edge_to_cloud_sync() -> None:
    """Extract, validate and load in one task: the samples stay out of Airflow's database."""

    @task(execution_timeout=timedelta(minutes=5))
    def sync() -> dict[str, object]:
        """Store the samples; the summary is the task's result."""
        # Not while the file is parsed, which happens every few seconds.
        from prime_spark.config import load_config  # noqa: PLC0415
        from prime_spark.pipeline import Settings, sync  # noqa: PLC0415

        summary = asdict(sync(load_config(Path(CONFIG), Settings)))
        logging.getLogger(__name__).info("synchronised %s", summary)
        return summary

    sync()


edge_to_cloud_sync()

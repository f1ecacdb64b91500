"""The DAG as Airflow itself runs it, from the image that the lab runs."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import redis as redis_client
from tests.integration.sandbox import Sandbox, SandboxError
from tests.integration.servers import PostgresServer, RedisServer

from support import database_config, sql

SOURCES = Path(__file__).resolve().parents[2]


class Airflow(Sandbox):
    """Airflow's command; its own data base is a file."""

    image = "airflow"
    uid = 50000
    data_path = "/opt/airflow/logs"

    def _lay_out(self) -> None:
        """Lay out the DAG and what it imports as the role does."""
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(SOURCES / "dags", self._data / "dags", ignore=ignored)
        shutil.copytree(SOURCES / "src", self._data / "src", ignore=ignored)
        self._data.chmod(0o755)

    def configure(self, config: dict[str, Any], credentials: dict[str, str]) -> None:
        """Write the pipeline's configuration."""
        self._lay_out()
        self._write("pipeline.json", json.dumps(config))
        for name, secret in credentials.items():
            self._write(name, secret)

    def _environment(self) -> dict[str, str]:
        return {
            "PATH": "/opt/airflow/venv/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "PYTHONPATH": f"{self.data_path}/src",
            "PYTHONDONTWRITEBYTECODE": "1",
            "AIRFLOW_HOME": self.data_path,
            "AIRFLOW__CORE__DAGS_FOLDER": f"{self.data_path}/dags",
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "CREDENTIALS_DIRECTORY": self.data_path,
            "PRIME_SPARK_PIPELINE_CONFIG": f"{self.data_path}/pipeline.json",
            "PRIME_SPARK_PIPELINE_RETRY_SECONDS": "0.1",
        }

    def test_dag(self) -> str:
        """`airflow dags test`; SandboxError when the run failed."""
        return self.run("sh", "-c", "airflow dags test edge_to_cloud_sync 2>&1")


# The same in every run; an old one would be dropped.
TIME = datetime.now(UTC).isoformat()


@pytest.fixture
def airflow(
    redis: RedisServer, postgres: PostgresServer, pipeline_database: str
) -> Iterator[Airflow]:
    # Not below pytest's own directory, which the image's user may not enter.
    with tempfile.TemporaryDirectory(prefix="prime-spark-airflow-") as directory:
        os.chmod(directory, 0o755)  # noqa: PTH101
        command = Airflow(Path(directory))
        config = {
            "redis": {
                "host": redis.host,
                "port": redis.port,
                "username": redis.username,
                "credential": "redis_password",
            },
            "database": database_config(postgres, pipeline_database, "prime_spark_pipeline"),
        }
        command.configure(
            config,
            {"redis_password": redis.password, "database_password": "pipeline secret"},
        )
        command.run("airflow", "db", "migrate")
        yield command


def put(redis: RedisServer, **values: str) -> None:
    with redis_client.Redis.from_url(redis.url) as client:
        client.flushall()
        client.hset("metrics:host-1", mapping={"time": TIME, **values})


@pytest.mark.timeout(400)
def test_dag_stores_once_and_retries_thrice(
    airflow: Airflow, redis: RedisServer, postgres: PostgresServer, pipeline_database: str
) -> None:
    def count() -> int:
        number: int = sql(postgres, pipeline_database, "SELECT count(*) AS n FROM device_metrics")[
            0
        ]["n"]
        return number

    put(redis, cpu="12.5", memory="40.0", disk="101")
    said = airflow.test_dag()
    assert "'inserted': 2" in said
    assert "'dropped': {'out of range': 1}" in said
    assert count() == 2

    again = airflow.test_dag()
    assert "'inserted': 0, 'duplicates': 2" in again
    assert count() == 2

    for server in (redis, postgres):
        server.stop()
        try:
            with pytest.raises(SandboxError) as failed:
                airflow.test_dag()
        finally:
            server.start()
        states = re.findall(r"new_state=(up_for_retry|failed|success)", str(failed.value))
        assert states == ["up_for_retry"] * 3 + ["failed"], failed.value
        assert count() == 2

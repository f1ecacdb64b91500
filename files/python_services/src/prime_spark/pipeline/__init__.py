"""From the newest samples in Redis to rows in TimescaleDB: extract, validate, load.

A second way for a host's figures into the cloud beside Kafka, run by Airflow's
`edge_to_cloud_sync`. Needs nothing of Airflow, and only msgspec, redis and asyncpg.
"""

from prime_spark.pipeline.steps import (
    Extracted,
    Row,
    Settings,
    Summary,
    Validated,
    extract,
    load,
    sync,
    validate,
)

__all__ = [
    "Extracted",
    "Row",
    "Settings",
    "Summary",
    "Validated",
    "extract",
    "load",
    "sync",
    "validate",
]

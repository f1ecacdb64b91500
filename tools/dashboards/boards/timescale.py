"""TimescaleDB: is it well, what does it hold, what does it do?"""

from __future__ import annotations

from tools.dashboards.builder import Dashboard, Panel, Prom, Row, Sql
from tools.dashboards.common import (
    DEVICES,
    UP,
    newest,
    samples,
)

TIMESCALE = Dashboard(
    uid="prime-spark-timescale",
    title="TimescaleDB",
    description="Is it well, what does it hold, what does it do?",
    variables=[DEVICES],
    rows=[
        Row(
            "Health",
            [
                Panel("Server", [Prom("pg_up", "{{host}}")], "stat", width=4, height=5, names=UP),
                Panel(
                    "Connections",
                    [
                        Prom(
                            "sum(pg_stat_activity_count) / max(pg_settings_max_connections)", "used"
                        )
                    ],
                    "stat",
                    "percentunit",
                    width=5,
                    height=5,
                    thresholds=[(0.7, "orange"), (0.9, "red")],
                ),
                Panel(
                    "Read from cache",
                    [
                        Prom(
                            "sum(rate(pg_stat_database_blks_hit[$__rate_interval])) / "
                            "(sum(rate(pg_stat_database_blks_hit[$__rate_interval]))"
                            " + sum(rate(pg_stat_database_blks_read[$__rate_interval])))",
                            "hits",
                        )
                    ],
                    "stat",
                    "percentunit",
                    width=5,
                    height=5,
                    maximum=1,
                ),
                Panel(
                    "Size",
                    [Prom('max(pg_database_size_bytes{datname="prime_spark"})', "bytes")],
                    "stat",
                    "bytes",
                    width=5,
                    height=5,
                ),
                Panel(
                    "Deadlocks",
                    [Prom("sum(increase(pg_stat_database_deadlocks[$__range]))", "deadlocks")],
                    "stat",
                    width=5,
                    height=5,
                    decimals=0,
                    thresholds=[(1, "red")],
                ),
            ],
        ),
        Row(
            "Work",
            [
                Panel(
                    "Transactions",
                    [
                        Prom(
                            'rate(pg_stat_database_xact_commit{datname="prime_spark"}[$__rate_interval])',
                            "committed",
                        ),
                        Prom(
                            'rate(pg_stat_database_xact_rollback{datname="prime_spark"}[$__rate_interval])',
                            "rolled back",
                        ),
                    ],
                    unit="ops",
                    width=8,
                ),
                Panel(
                    "Connections by state",
                    [
                        Prom(
                            'sum by (state) (pg_stat_activity_count{datname="prime_spark"})',
                            "{{state}}",
                        )
                    ],
                    width=8,
                    decimals=0,
                    stacked=True,
                ),
                Panel(
                    "Locks",
                    [Prom('sum by (mode) (pg_locks_count{datname="prime_spark"})', "{{mode}}")],
                    width=8,
                    decimals=0,
                    stacked=True,
                ),
            ],
        ),
        Row(
            "Data",
            [
                Panel(
                    "Age of the newest sample",
                    [
                        Prom(
                            'time() - prime_spark_device_newest_sample_timestamp_seconds{device_id=~"$host"}',
                            "{{device_id}}",
                        )
                    ],
                    unit="s",
                    thresholds=[(300, "red")],
                ),
                Panel(
                    "Rows by table",
                    [
                        Sql(
                            f"""SELECT $__timeGroup(time, $__interval) AS "time", '{table}' AS metric,
                            {count} AS value FROM {rows} GROUP BY 1 ORDER BY 1"""
                        )
                        for table, count, rows in (
                            ("device_metrics", "sum(samples)", samples()),
                            *(
                                (table, "count(*)", f"{table} WHERE $__timeFilter(time)")
                                for table in ("ai_inference_results", "api_events")
                            ),
                        )
                    ],
                    description="By the time of the event, and not of its insert.",
                ),
                Panel(
                    "Newest values",
                    [newest()],
                    "table",
                    width=24,
                    minimum=None,
                ),
            ],
        ),
    ],
)

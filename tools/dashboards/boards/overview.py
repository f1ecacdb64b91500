"""System Overview: is the fleet well?"""

from __future__ import annotations

from tools.dashboards.builder import Dashboard, Panel, Prom, Row, Sql
from tools.dashboards.common import (
    HOST,
    HOSTS,
    SECONDS,
    UP,
    USERS,
    device,
    errors,
)

OVERVIEW = Dashboard(
    uid="prime-spark-overview",
    title="System Overview",
    description="The whole fleet at a glance.",
    variables=[HOSTS],
    rows=[
        Row(
            "Now",
            [
                Panel(
                    "Targets down",
                    [Prom(f"count(up{{{HOST}}} == 0) or vector(0)", "down")],
                    "stat",
                    width=4,
                    height=4,
                    thresholds=[(1, "red")],
                    more="prime-spark-fleet",
                ),
                Panel(
                    "Alerts firing",
                    [
                        Prom(
                            'count(ALERTS{alertstate="firing",alertname!="DeadMansSwitch"})'
                            " or vector(0)",
                            "firing",
                        )
                    ],
                    "stat",
                    width=4,
                    height=4,
                    thresholds=[(1, "red")],
                    more="prime-spark-slo",
                ),
                Panel(
                    "API requests",
                    [
                        Prom(
                            f'sum(rate(fastapi_requests_total{{service="api",{USERS}}}[$__rate_interval]))',
                            "requests",
                        )
                    ],
                    "stat",
                    "reqps",
                    width=4,
                    height=4,
                ),
                Panel(
                    "API errors",
                    [Prom(errors("$__rate_interval"), "5xx")],
                    "stat",
                    "percentunit",
                    width=4,
                    height=4,
                    thresholds=[(0.005, "orange"), (0.05, "red")],
                    more="prime-spark-slo",
                ),
                Panel(
                    "Oldest telemetry",
                    [
                        Prom(
                            "max(time() - prime_spark_device_newest_sample_timestamp_seconds)",
                            "age",
                        )
                    ],
                    "stat",
                    "s",
                    "Age of the newest row of the device that is furthest behind.",
                    width=4,
                    height=4,
                    thresholds=[(120, "orange"), (300, "red")],
                    more="prime-spark-timescale",
                ),
                Panel(
                    "Consumer lag",
                    [Prom("sum(consumergroup_topic:kafka_lag:sum)", "messages")],
                    "stat",
                    width=4,
                    height=4,
                    thresholds=[(500, "orange"), (1000, "red")],
                    more="prime-spark-kafka",
                ),
            ],
        ),
        Row(
            "API",
            [
                Panel(
                    "API Request Rate",
                    [
                        Prom(
                            f'sum by (method, endpoint) (rate(fastapi_requests_total{{service="api",{USERS}}}[$__rate_interval]))',
                            "{{method}} {{endpoint}}",
                        )
                    ],
                    unit="reqps",
                    stacked=True,
                ),
                Panel(
                    "API Latency",
                    [
                        Prom(
                            f"histogram_quantile({quantile}, sum by (le) (rate("
                            f'fastapi_request_duration_seconds_bucket{{service="api",{USERS}}}[$__rate_interval])))',
                            name,
                        )
                        for quantile, name in ((0.5, "p50"), (0.95, "p95"), (0.99, "p99"))
                    ],
                    unit="s",
                    thresholds=SECONDS,
                ),
            ],
        ),
        Row(
            "Devices",
            [
                Panel(
                    "CPU Usage by Device",
                    [device("cpu_percent")],
                    unit="percent",
                    maximum=100,
                    thresholds=[(80, "orange"), (90, "red")],
                    more="prime-spark-fleet",
                ),
                Panel(
                    "Memory Usage",
                    [device("memory_percent")],
                    unit="percent",
                    maximum=100,
                    thresholds=[(80, "orange"), (90, "red")],
                    more="prime-spark-fleet",
                ),
                Panel(
                    "LLM Inference Latency (p95)",
                    [
                        Sql(
                            """SELECT $__timeGroup(time, $__interval) AS "time", source AS metric,
                            percentile_cont(0.95) WITHIN GROUP (ORDER BY latency_ms) AS value
                            FROM ai_inference_results WHERE $__timeFilter(time)
                            GROUP BY 1, 2 ORDER BY 1"""
                        )
                    ],
                    unit="ms",
                    more="prime-spark-edge-cloud",
                ),
                Panel(
                    "Targets",
                    [
                        Prom(
                            f"max by (host, job, service) (up{{{HOST}}})",
                            "{{host}} {{job}} {{service}}",
                        )
                    ],
                    "state-timeline",
                    minimum=None,
                    names=UP,
                ),
            ],
        ),
    ],
)

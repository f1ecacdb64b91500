"""The dashboards: what the fleet looks like when it is well, and what to look at when it is not."""

from __future__ import annotations

from tools.dashboards.builder import Dashboard, Panel, Prom, Row, Sql, Variable

# As in the rules: scrapes and health checks are no requests of users.
USERS = 'endpoint!~"/metrics|/health"'
HOST = 'host=~"$host"'
BUSY = ((0.8, "orange"), (0.9, "red"))
FREE = ((0.0, "red"), (0.2, "orange"), (0.3, "green"))
SECONDS = ((0.5, "orange"), (1.0, "red"))
UP = {"0": ("down", "red"), "1": ("up", "green")}
HOSTS = Variable("host", "label_values(up, host)", "Host")
DEVICES = HOSTS


def device(metric: str) -> Sql:
    """A metric of the telemetry by device."""
    return Sql(
        f"""SELECT $__timeGroup(time, $__interval) AS "time", device_id AS metric, avg(value) AS value
        FROM device_metrics
        WHERE $__timeFilter(time) AND metric_name = '{metric}' AND device_id IN ($host)
        GROUP BY 1, 2 ORDER BY 1"""
    )


def errors(window: str) -> str:
    """The ratio of the API's requests that end with a 5xx."""
    good = f'service="api",{USERS}'
    return (
        f'(sum(increase(fastapi_requests_total{{{good},status=~"5.."}}[{window}])) or vector(0))'
        f" / sum(increase(fastapi_requests_total{{{good}}}[{window}]))"
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

KAFKA = Dashboard(
    uid="prime-spark-kafka",
    title="Kafka Streams",
    description="From the producers' queues through Kafka into the database.",
    rows=[
        Row(
            "Topics",
            [
                Panel(
                    "Consumer Lag",
                    [Prom("consumergroup_topic:kafka_lag:sum", "{{consumergroup}} {{topic}}")],
                    description="Messages that a consumer group has not committed yet.",
                    thresholds=[(1000, "red")],
                ),
                Panel(
                    "Messages/sec",
                    [
                        Prom(
                            "sum by (topic) (rate(kafka_topic_partition_current_offset[$__rate_interval]))",
                            "{{topic}}",
                        )
                    ],
                    unit="cps",
                    stacked=True,
                ),
                Panel(
                    "Messages kept",
                    [
                        Prom(
                            "sum by (topic) (kafka_topic_partition_current_offset"
                            " - kafka_topic_partition_oldest_offset)",
                            "{{topic}}",
                        )
                    ],
                    width=8,
                ),
                Panel(
                    "Group members",
                    [Prom("kafka_consumergroup_members", "{{consumergroup}}")],
                    width=8,
                    decimals=0,
                ),
                Panel(
                    "Partitions out of sync",
                    [
                        Prom(
                            "sum by (topic) (kafka_topic_partition_under_replicated_partition)",
                            "{{topic}}",
                        )
                    ],
                    width=8,
                    decimals=0,
                    thresholds=[(1, "red")],
                ),
            ],
        ),
        Row(
            "Ingest",
            [
                Panel(
                    "Rows stored",
                    [
                        Prom(
                            "sum by (table) (rate(prime_spark_ingest_rows_total[$__rate_interval]))",
                            "{{table}}",
                        )
                    ],
                    unit="rowsps",
                    stacked=True,
                    more="prime-spark-timescale",
                ),
                Panel(
                    "Time of a batch (p95)",
                    [
                        Prom(
                            "histogram_quantile(0.95, sum by (le) (rate("
                            "prime_spark_ingest_batch_seconds_bucket[$__rate_interval])))",
                            "p95",
                        )
                    ],
                    unit="s",
                    description="From a batch read to its offsets committed.",
                ),
                Panel(
                    "Since the last commit",
                    [Prom("time() - prime_spark_ingest_last_commit_timestamp_seconds", "{{host}}")],
                    unit="s",
                    width=24,
                    height=6,
                    thresholds=[(120, "orange"), (300, "red")],
                ),
            ],
        ),
        Row(
            "Producers",
            [
                Panel(
                    "Telemetry sent",
                    [
                        Prom(
                            "sum by (host) (rate(prime_spark_telemetry_sent_total[$__rate_interval]))",
                            "{{host}}",
                        )
                    ],
                    unit="cps",
                    width=8,
                ),
                Panel(
                    "Samples waiting on disk",
                    [Prom("prime_spark_telemetry_buffer_records", "{{host}}")],
                    width=8,
                    description="Grows while Kafka cannot be reached.",
                ),
                Panel(
                    "API events waiting",
                    [Prom("prime_spark_publisher_queued", "{{host}} {{service}}")],
                    width=8,
                ),
            ],
        ),
    ],
)


def per_source(value: str) -> Sql:
    """A figure of the inferences over time, by where they ran."""
    return Sql(
        f"""SELECT $__timeGroup(time, $__interval) AS "time", source AS metric, {value} AS value
        FROM ai_inference_results WHERE $__timeFilter(time) GROUP BY 1, 2 ORDER BY 1"""
    )


EDGE_CLOUD = Dashboard(
    uid="prime-spark-edge-cloud",
    title="Edge vs Cloud Performance",
    description="Where language models answer, how fast, and what the edge's agent does.",
    rows=[
        Row(
            "Inference",
            [
                Panel(
                    "Request Routing",
                    [
                        Sql(
                            """SELECT source, count(*) AS requests FROM ai_inference_results
                            WHERE $__timeFilter(time) GROUP BY source ORDER BY source""",
                            table=True,
                        )
                    ],
                    "piechart",
                    width=8,
                ),
                Panel(
                    "Latency Comparison",
                    [
                        Sql(
                            """SELECT source, avg(latency_ms) AS "mean",
                            percentile_cont(0.95) WITHIN GROUP (ORDER BY latency_ms) AS "p95"
                            FROM ai_inference_results
                            WHERE $__timeFilter(time) GROUP BY source ORDER BY source""",
                            table=True,
                        )
                    ],
                    "barchart",
                    "ms",
                    width=8,
                ),
                Panel(
                    "Tokens per second of an answer",
                    [
                        Sql(
                            """SELECT source, sum(output_tokens) / nullif(sum(latency_ms) / 1000, 0) AS "tokens/s"
                            FROM ai_inference_results
                            WHERE $__timeFilter(time) AND output_tokens IS NOT NULL AND source <> 'cache'
                            GROUP BY source ORDER BY source""",
                            table=True,
                        )
                    ],
                    "barchart",
                    width=8,
                ),
                Panel(
                    "Requests over time",
                    [per_source("count(*)")],
                    stacked=True,
                ),
                Panel(
                    "Latency over time (median)",
                    [per_source("percentile_cont(0.5) WITHIN GROUP (ORDER BY latency_ms)")],
                    unit="ms",
                ),
                Panel(
                    "Models",
                    [
                        Sql(
                            """SELECT model_name AS "Model", source AS "Source", count(*) AS "Requests",
                            avg(latency_ms) AS "Mean latency [ms]", sum(output_tokens) AS "Tokens"
                            FROM ai_inference_results WHERE $__timeFilter(time)
                            GROUP BY 1, 2 ORDER BY 3 DESC LIMIT 20""",
                            table=True,
                        )
                    ],
                    "table",
                    width=24,
                    minimum=None,
                ),
            ],
        ),
        Row(
            "Edge",
            [
                Panel(
                    "API calls at the edge, by endpoint (mean)",
                    [
                        Sql(
                            """SELECT $__timeGroup(time, $__interval) AS "time", endpoint AS metric,
                            avg(duration_ms) AS value FROM api_events WHERE $__timeFilter(time)
                            GROUP BY 1, 2 ORDER BY 1"""
                        )
                    ],
                    unit="ms",
                ),
                Panel(
                    "Agent: tasks under way",
                    [Prom("prime_spark_agent_tasks_running", "{{host}}")],
                    decimals=0,
                ),
            ],
        ),
    ],
)

FLEET = Dashboard(
    uid="prime-spark-fleet",
    title="Fleet & VPN",
    description="The hosts, the network between them, and the NAS.",
    variables=[HOSTS],
    rows=[
        Row(
            "Hosts",
            [
                Panel(
                    "CPU in use",
                    [Prom(f"host:cpu_busy:ratio{{{HOST}}}", "{{host}}")],
                    unit="percentunit",
                    maximum=1,
                    thresholds=BUSY,
                    width=8,
                ),
                Panel(
                    "Memory in use",
                    [Prom(f"host:memory_used:ratio{{{HOST}}}", "{{host}}")],
                    unit="percentunit",
                    maximum=1,
                    thresholds=BUSY,
                    width=8,
                ),
                Panel(
                    "Load, per core",
                    [
                        Prom(
                            f"max by (host) (node_load5{{{HOST}}}) / count by (host)"
                            f' (node_cpu_seconds_total{{mode="idle",{HOST}}})',
                            "{{host}}",
                        )
                    ],
                    width=8,
                    thresholds=[(1, "orange"), (2, "red")],
                ),
                Panel(
                    "Disk available",
                    [Prom(f"host:disk_available:ratio{{{HOST}}}", "{{host}} {{mountpoint}}")],
                    "bargauge",
                    "percentunit",
                    maximum=1,
                    thresholds=FREE,
                ),
                Panel(
                    "Network",
                    [
                        Prom(
                            f'sum by (host) (rate(node_network_receive_bytes_total{{device!="wg0",{HOST}}}[$__rate_interval]))',
                            "{{host}} in",
                        ),
                        Prom(
                            f'sum by (host) (rate(node_network_transmit_bytes_total{{device!="wg0",{HOST}}}[$__rate_interval]))',
                            "{{host}} out",
                        ),
                    ],
                    unit="Bps",
                ),
                Panel(
                    "Clock",
                    [
                        Prom(
                            f"node_time_seconds{{{HOST}}} - timestamp(node_time_seconds{{{HOST}}})",
                            "{{host}}",
                        )
                    ],
                    unit="s",
                    minimum=None,
                    description="How far the host's clock is from Prometheus's.",
                ),
                Panel(
                    "Failed units",
                    [
                        Prom(
                            f'sum by (host) (node_systemd_unit_state{{state="failed",{HOST}}})',
                            "{{host}}",
                        )
                    ],
                    decimals=0,
                    thresholds=[(1, "red")],
                ),
            ],
        ),
        Row(
            "VPN",
            [
                Panel(
                    "Since the last handshake",
                    [
                        Prom(
                            f"time() - (prime_spark_wireguard_latest_handshake_seconds{{{HOST}}} > 0)",
                            "{{host}} to {{peer}}",
                        )
                    ],
                    unit="s",
                    thresholds=[(180, "orange"), (300, "red")],
                    description="WireGuard makes a new one every two minutes.",
                ),
                Panel(
                    "Traffic by peer",
                    [
                        Prom(
                            f"rate(prime_spark_wireguard_received_bytes_total{{{HOST}}}[$__rate_interval])",
                            "{{host}} from {{peer}}",
                        ),
                        Prom(
                            f"rate(prime_spark_wireguard_sent_bytes_total{{{HOST}}}[$__rate_interval])",
                            "{{host}} to {{peer}}",
                        ),
                    ],
                    unit="Bps",
                ),
            ],
        ),
        Row(
            "NAS and containers",
            [
                Panel(
                    "NAS answers",
                    [Prom("prime_spark_nas_responding", "{{host}}")],
                    "state-timeline",
                    minimum=None,
                    names={"0": ("no", "red"), "1": ("yes", "green")},
                    width=8,
                ),
                Panel(
                    "Containers",
                    [Prom(f"prime_spark_container_running{{{HOST}}}", "{{host}} {{container}}")],
                    "state-timeline",
                    minimum=None,
                    names=UP,
                    width=8,
                ),
                Panel(
                    "Container restarts",
                    [
                        Prom(
                            f"sum by (host, container) (prime_spark_container_restarts_total{{{HOST}}})",
                            "{{host}} {{container}}",
                        )
                    ],
                    width=8,
                    decimals=0,
                ),
            ],
        ),
    ],
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
                            count(*) AS value FROM {table} WHERE $__timeFilter(time) GROUP BY 1 ORDER BY 1"""
                        )
                        for table in ("device_metrics", "ai_inference_results", "api_events")
                    ],
                    description="By the time of the event, and not of its insert.",
                ),
                Panel(
                    "Newest values",
                    [
                        Sql(
                            """SELECT DISTINCT ON (device_id, metric_name) device_id AS "Device",
                            metric_name AS "Metric", value AS "Value", time AS "At"
                            FROM device_metrics
                            WHERE $__timeFilter(time) AND device_id IN ($host)
                            ORDER BY device_id, metric_name, time DESC""",
                            table=True,
                        )
                    ],
                    "table",
                    width=24,
                    minimum=None,
                ),
            ],
        ),
    ],
)


def slow(window: str) -> str:
    """The ratio of the API's requests that take longer than a second."""
    users = 'service="api",endpoint!~"/metrics|/health|/api/llm/generate|/api/execute"'
    return (
        f'1 - sum(increase(fastapi_request_duration_seconds_bucket{{{users},le="1.0"}}[{window}]))'
        f" / sum(increase(fastapi_request_duration_seconds_count{{{users}}}[{window}]))"
    )


LEFT = ((0.0, "orange"), (0.3, "green"))

SLO = Dashboard(
    uid="prime-spark-slo",
    title="Alerts and SLOs",
    description="What is wrong now, and how much may still go wrong. Objectives are for 30 days: choose the range.",
    since="now-24h",
    rows=[
        Row(
            "Alerts",
            [
                Panel(
                    "Firing now",
                    [
                        Prom(
                            'max by (alertname, severity, host, service) (ALERTS{alertstate="firing"})',
                            instant=True,
                        )
                    ],
                    "table",
                    description="DeadMansSwitch always fires; its absence is the alarm.",
                    minimum=None,
                ),
                Panel(
                    "Firing over time",
                    [Prom('count by (alertname) (ALERTS{alertstate="firing"})', "{{alertname}}")],
                    decimals=0,
                    stacked=True,
                ),
            ],
        ),
        Row(
            "Objectives of the API",
            [
                Panel(
                    "Availability",
                    [Prom(f"1 - {errors('$__range')}", "answered without a 5xx")],
                    "stat",
                    "percentunit",
                    width=6,
                    height=5,
                    decimals=3,
                    minimum=None,
                ),
                Panel(
                    "Error budget left",
                    [
                        Prom(
                            f"1 - {errors('$__range')} / scalar(1 - service:slo_availability:objective)",
                            "of the budget",
                        )
                    ],
                    "stat",
                    "percentunit",
                    width=6,
                    height=5,
                    minimum=None,
                    thresholds=LEFT,
                ),
                Panel(
                    "Answered within a second",
                    [Prom(f"1 - ({slow('$__range')})", "within 1 s")],
                    "stat",
                    "percentunit",
                    width=6,
                    height=5,
                    decimals=3,
                    minimum=None,
                ),
                Panel(
                    "Latency budget left",
                    [
                        Prom(
                            f"1 - ({slow('$__range')}) / scalar(1 - service:slo_latency:objective)",
                            "of the budget",
                        )
                    ],
                    "stat",
                    "percentunit",
                    width=6,
                    height=5,
                    minimum=None,
                    thresholds=LEFT,
                ),
                Panel(
                    "Burn rate",
                    [
                        Prom(
                            f"{errors('1h')} / scalar(1 - service:slo_availability:objective)",
                            "availability, 1 h",
                        ),
                        Prom(
                            f"({slow('1h')}) / scalar(1 - service:slo_latency:objective)",
                            "latency, 1 h",
                        ),
                    ],
                    width=24,
                    description="1 uses the budget up exactly; 14.4 uses 2 % of it in an hour.",
                    thresholds=[(1, "orange"), (14.4, "red")],
                ),
            ],
        ),
        Row(
            "The way of alerts",
            [
                Panel(
                    "Heartbeat heard",
                    [
                        Prom(
                            "time() - prime_spark_deadman_last_heartbeat_timestamp_seconds",
                            "{{host}}",
                        )
                    ],
                    unit="s",
                    width=8,
                    description="How long ago the dead-man receiver last heard of Alertmanager.",
                    thresholds=[(180, "red")],
                ),
                Panel(
                    "Notifications",
                    [
                        Prom(
                            "sum by (integration) (rate(alertmanager_notifications_total[$__rate_interval]))",
                            "{{integration}}",
                        )
                    ],
                    unit="cps",
                    width=8,
                ),
                Panel(
                    "Evaluation of rules",
                    [
                        Prom(
                            "sum(prometheus_rule_group_last_duration_seconds)",
                            "all groups",
                        )
                    ],
                    unit="s",
                    width=8,
                ),
            ],
        ),
    ],
)

BOARDS = (OVERVIEW, KAFKA, EDGE_CLOUD, FLEET, TIMESCALE, SLO)

"""Kafka Streams: brokers, topics, consumers."""

from __future__ import annotations

from tools.dashboards.builder import Dashboard, Panel, Prom, Row

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

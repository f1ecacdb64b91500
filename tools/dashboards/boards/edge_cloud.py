"""Edge vs Cloud Performance: who answers, and how fast."""

from __future__ import annotations

from tools.dashboards.builder import Dashboard, Panel, Prom, Row, Sql


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

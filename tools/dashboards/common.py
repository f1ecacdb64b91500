"""What several dashboards have in common: selectors, thresholds, variables, queries."""

from __future__ import annotations

from tools.dashboards.builder import Sql, Variable

# As in the rules: scrapes and health checks are no requests of users.
USERS = 'endpoint!~"/metrics|/health"'
HOST = 'host=~"$host"'
BUSY = ((0.8, "orange"), (0.9, "red"))
FREE = ((0.0, "red"), (0.2, "orange"), (0.3, "green"))
SECONDS = ((0.5, "orange"), (1.0, "red"))
UP = {"0": ("down", "red"), "1": ("up", "green")}
HOSTS = Variable("host", "label_values(up, host)", "Host")
DEVICES = HOSTS


def samples(condition: str = "true") -> str:
    """A subquery of the telemetry: time, device_id, metric_name, value, and of how many `samples`.

    As fine as one point of the panel needs: samples, or means of 5 minutes or an hour once a point
    is as wide. Where retention has taken the finer ones, coarser ones stand in, so that each moment
    comes from one table. Conditions on constants cost nothing: the plan leaves their table out.
    """
    sampled = "(SELECT rolled_before FROM rollup_floor)"
    fine = "(SELECT coalesce(min(bucket), 'infinity') FROM device_metrics_5m)"
    return f"""(
        SELECT time, device_id, metric_name, value, 1 AS samples FROM device_metrics
        WHERE $__timeFilter(time) AND {condition}
        AND $__interval_ms < 300000 AND time >= {sampled}
        UNION ALL
        SELECT bucket, device_id, metric_name, average, samples FROM device_metrics_5m
        WHERE $__timeFilter(bucket) AND {condition}
        AND $__interval_ms < 3600000 AND ($__interval_ms >= 300000 OR bucket < {sampled})
        UNION ALL
        SELECT bucket, device_id, metric_name, average, samples FROM device_metrics_1h
        WHERE $__timeFilter(bucket) AND {condition}
        AND ($__interval_ms >= 3600000 OR bucket < {fine})
        ) AS samples"""


def device(metric: str) -> Sql:
    """A metric of the telemetry by device."""
    return Sql(
        f"""SELECT $__timeGroup(time, $__interval) AS "time", device_id AS metric,
        sum(value * samples) / sum(samples) AS value
        FROM {samples(f"metric_name = '{metric}' AND device_id IN ($host)")}
        GROUP BY 1, 2 ORDER BY 1"""
    )


def newest() -> Sql:
    """The newest value of each device's metrics, from the finest table that has one.

    Which metrics there are is known from the hours, and for the last ones from finer tables; then
    each is one look into an index, and not a sort of all samples.
    """
    late = "$__timeTo()::timestamptz - INTERVAL '2 hours'"
    columns = {
        "device_metrics": "time",
        "device_metrics_5m": "bucket",
        "device_metrics_1h": "bucket",
    }
    names = " UNION ".join(
        f"""SELECT device_id, metric_name FROM {table}
        WHERE $__timeFilter({column}) AND device_id IN ($host)
        {"" if table == "device_metrics_1h" else f"AND {column} > {late}"}"""
        for table, column in columns.items()
    )
    values = " UNION ALL ".join(
        f"""(SELECT {column} AS time, {"value" if column == "time" else "average"} AS value
        FROM {table} WHERE device_id = known.device_id AND metric_name = known.metric_name
        AND $__timeFilter({column}) ORDER BY {column} DESC LIMIT 1)"""
        for table, column in columns.items()
    )
    return Sql(
        f"""SELECT device_id AS "Device", metric_name AS "Metric", value AS "Value", time AS "At"
        FROM ({names}) AS known,
        LATERAL (SELECT * FROM ({values}) AS found ORDER BY time DESC LIMIT 1) AS newest
        ORDER BY 1, 2""",
        table=True,
    )


def errors(window: str) -> str:
    """The ratio of the API's requests that end with a 5xx."""
    good = f'service="api",{USERS}'
    return (
        f'(sum(increase(fastapi_requests_total{{{good},status=~"5.."}}[{window}])) or vector(0))'
        f" / sum(increase(fastapi_requests_total{{{good}}}[{window}]))"
    )

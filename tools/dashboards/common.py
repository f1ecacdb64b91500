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

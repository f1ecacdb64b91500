"""Alerts and SLOs: what fires, and what is left of the error budgets."""

from __future__ import annotations

from tools.dashboards.builder import Dashboard, Panel, Prom, Row
from tools.dashboards.common import (
    errors,
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
            "Alerting",
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

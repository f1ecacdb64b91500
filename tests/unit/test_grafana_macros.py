"""Panels' queries are expanded as Grafana does."""

from __future__ import annotations

import pytest

from tests.integration.panels.grafana import MacroError, Range, duration, promql, seconds, sql

SPAN = Range(1_700_000_000, 1_700_003_600)


@pytest.mark.parametrize(
    ("length", "points", "least", "interval"),
    [
        (3600, 1000, 0.001, 5),  # 3.6 s
        (3600, 1000, 15, 15),
        (3 * 3600, 1000, 15, 15),  # 10.8 s
        (86400, 1000, 15, 60),  # 86.4 s
        (86400, 900, 15, 120),  # 96 s
        (30 * 86400, 1000, 15, 1800),  # 2592 s
        (80_000 * 1000, 1000, 15, 43200),
        (1, 1000, 0.001, 0.001),
    ],
)
def test_interval(length: float, points: int, least: float, interval: float) -> None:
    assert Range(0, length, points).interval(least) == interval


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("rate(x[$__rate_interval])", "rate(x[1m])"),
        ("rate(x[${__rate_interval}])", "rate(x[1m])"),
        ("rate(x[$__interval])", "rate(x[15s])"),
        ("increase(x[$__range])", "increase(x[3600s])"),
        ("x * $__range_s", "x * 3600"),
        ('up{host=~"$one"}', 'up{host=~"a"}'),
        ('up{host=~"$two"}', 'up{host=~"(a|b\\\\.c)"}'),
    ],
)
def test_promql(text: str, expanded: str) -> None:
    found = promql(text, SPAN, 15, {"one": ["a"], "two": ["a", "b.c"]})
    assert found == (expanded, 15)


def test_the_rate_interval_grows_with_the_range() -> None:
    assert promql("$__rate_interval", Range(0, 30 * 86400), 15, {}) == ("1815s", 1800)


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        (
            "SELECT 1 WHERE $__timeFilter(time)",
            "SELECT 1 WHERE time BETWEEN '2023-11-14T22:13:20Z' AND '2023-11-14T23:13:20Z'",
        ),
        ("$__timeGroup(time, $__interval)", "time_bucket('5.000s',time)"),
        ("$__timeGroup(time,'5m')", "time_bucket('300.000s',time)"),
        ("$__timeGroupAlias(time, 1h)", "time_bucket('3600.000s',time) AS \"time\""),
        ("$__timeFilter(to_timestamp(f(a, b)))", None),
        ("$__time(t)", 't AS "time"'),
        ("t > $__timeFrom() AND t < $__timeTo()", None),
        ("device_id IN ($two)", "device_id IN ('a','it''s')"),
        ("SELECT '$one'", None),
    ],
)
def test_sql(text: str, expanded: str | None) -> None:
    found = sql(text, SPAN, {"one": ["a"], "two": ["a", "it's"]})
    assert "$" not in found
    assert expanded is None or found == expanded


@pytest.mark.parametrize(
    "text",
    [
        "$__unknown(time)",
        "$__timeFilter()",
        "$__timeFilter(time",
        "$__timeGroup(time, soon)",
        "$__timeFilter",
        "x = '$nobody'",
    ],
)
def test_what_grafana_would_not_expand_is_an_error(text: str) -> None:
    with pytest.raises(MacroError):
        sql(text, SPAN, {})


def test_an_unknown_variable_is_an_error() -> None:
    with pytest.raises(MacroError, match=r"\$host"):
        promql('up{host="$host"}', SPAN, 15, {})


@pytest.mark.parametrize(
    ("text", "value"), [("5m", 300), ("1h30m", 5400), ("250ms", 0.25), ("1d", 86400)]
)
def test_durations(text: str, value: float) -> None:
    assert seconds(text) == value
    assert seconds(duration(value)) == value

"""Asks every panel's queries of the provisioned lab while it works: python -m tests.system.panels

Prints what each returned. A panel without a finite value, one whose values stay as they were
although they should change, and a metric or label that no target exports, fail.
"""

from __future__ import annotations

import json
import sys
import threading
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from tests.integration.panels.contract import unknown
from tests.integration.panels.grafana import Range, seconds
from tests.integration.panels.queries import Panel, Values, listed, panels
from tests.system.fleet import fleet
from tests.system.fleet.condition import wait_all_well
from tests.system.fleet.fleet import (
    connect,
    members,
    probe,
    service_python,
    setting,
    shell,
    vpn_address,
)

# How long everything may take to have values, once there is load.
PATIENCE = 240.0
BETWEEN = 30.0
WELL_SECONDS = 180.0
WINDOW = 15 * 60
SOURCES = ("edge", "cloud")


def api(path: str, **arguments: str) -> Any:
    """The data of an answer of the lab's Prometheus."""
    (name,) = members("monitoring")
    query = f"{path}?{urllib.parse.urlencode(arguments)}" if arguments else path
    answer = probe(connect(name), "scrape", "prometheus", f"/api/v1/{query}")
    assert answer["status"] == 200, answer
    return json.loads(answer["body"])["data"]


@cache
def ask(path: str, match: str = "") -> Any:
    """As `api`, asked once."""
    return api(path, **{"match[]": match}) if match else api(path)


def prometheus(expr: str, span: Range, step: float | None) -> Values:
    """The values of a query, of all series."""
    if step is None:
        found = api("query", query=expr, time=str(span.end))["result"]
        return [float(series["value"][1]) for series in found]
    found = api(
        "query_range", query=expr, start=str(span.start), end=str(span.end), step=str(step)
    )["result"]
    return [float(value) for series in found for _, value in series["values"]]


def database(sql: str) -> list[dict[str, Any]]:
    """Rows of a query, asked with the rights that Grafana has."""
    (name,) = members("timescale")
    script = (
        "docker compose --project-name timescale exec -T --user postgres timescale psql"
        " --no-psqlrc --quiet --tuples-only --no-align --set ON_ERROR_STOP=1"
        ' --command "SET ROLE prime_spark_reader" --command "$1" prime_spark'
    )
    text = shell(connect(name), script, f"SELECT coalesce(json_agg(q), '[]') FROM ({sql}) q")
    return list(json.loads(text))


@contextmanager
def load() -> Iterator[None]:
    """Requests to the API, and inferences as it would report them, until the block ends."""
    (name,) = members("api")
    base = f"http://{vpn_address(name)}:{setting(name, 'api', 'api_port')}"
    paths = ("/api/auth/me", "/api/llm/models", "/api/memory/get/load", "/api/health/detailed")
    stop = threading.Event()
    failures: list[str] = []

    def work() -> None:
        while not stop.is_set():
            try:
                answers = probe(connect(name), "http_get", *(f"{base}{path}" for path in paths))
                failures.extend(str(a["error"]) for a in answers.values() if "error" in a)
                probe(connect(name), "inferences", "3", *SOURCES, python=service_python("api"))
            except AssertionError as error:
                failures.append(str(error))
            stop.wait(1)

    worker = threading.Thread(target=work, name="load")
    worker.start()
    try:
        yield
    finally:
        stop.set()
        worker.join()
        if failures:
            print(f"load: {len(failures)} failures, the last: {failures[-1]}", file=sys.stderr)


def look(wanted: list[Panel]) -> dict[tuple[str, str], list[Values]]:
    """What the panels show now."""
    span = Range(time.time() - WINDOW, time.time())
    (name,) = members("monitoring")
    scrape = seconds(str(setting(name, "monitoring", "monitoring_scrape_interval")))
    choices = {"host": members("managed")}
    return {
        (panel.dashboard, panel.title): panel.ask(prometheus, database, span, scrape, choices)
        for panel in wanted
    }


def main() -> int:
    """Print the table; 1 when something is wrong."""
    wanted = panels()
    names = [(panel.dashboard, panel.title) for panel in wanted]
    kinds = listed()
    if set(names) != set(kinds):
        print(
            "tests/integration/panels/panels.yml is not what the dashboards have:", file=sys.stderr
        )
        for name in sorted(set(names) ^ set(kinds)):
            print(f"  {' / '.join(name)}", file=sys.stderr)
        return 1
    print("Grafana's server is skipped: its queries are asked as it would ask them")
    try:
        wait_all_well(WELL_SECONDS)  # after a boot
        with load():
            deadline = time.monotonic() + PATIENCE
            while True:
                first = look(wanted)
                empty = [name for name in names if not all(first[name])]
                if not empty or time.monotonic() > deadline:
                    break
            time.sleep(BETWEEN)
            second = look(wanted)
        missing = unknown(ask, [query for panel in wanted for query in panel.promql()])
    finally:
        fleet.disconnect_all()
    well = 0
    for name in names:
        rows = sum(map(len, second[name]))
        empty_now = not all(second[name])
        stuck = kinds[name] == "changes" and first[name] == second[name]
        remark = "NO DATA" if empty_now else "DOES NOT CHANGE" if stuck else ""
        well += not remark
        print(f"{name[0]:<28} {name[1]:<42} {rows:>6}  {remark}".rstrip())
    for name in missing:
        print(f"no target exports {name}")
    print(f"panels with data: {well} of {len(kinds)}")
    return 0 if well == len(kinds) and not missing else 1


if __name__ == "__main__":
    sys.exit(main())

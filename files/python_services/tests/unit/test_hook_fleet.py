"""The fleet on the hook's page: the VPN and the alerts of each host, and files that are damaged."""

from __future__ import annotations

import asyncio
import json
import re
import sqlite3
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from test_hook_tell import Listener, until, working

from hook_page import Browser, Fleet, example, job
from prime_spark.hook import firing
from prime_spark.hook.firing import Alert, Firing
from prime_spark.hook.settings import AlertmanagerConfig
from prime_spark.hook.web.logins import open_store


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    fleet = Fleet(tmp_path)
    yield fleet
    fleet.close()


def page(fleet: Fleet, path: str = "/") -> str:
    """Return what a viewer sees, as text on one line."""
    browser = Browser(fleet)
    browser.enter("vera")
    return " ".join(re.sub(r"<[^>]+>", " ", browser.get(path).text).split())


def test_each_host_has_its_vpn_and_its_alerts(fleet: Fleet) -> None:
    example(fleet)
    seen = page(fleet)
    assert "VPN up" in seen
    assert "VPN silent for 1 h 30 min" in seen
    assert "2 alerts fire" in seen
    assert "HostDown primecore4 does not answer, since 1 h ago" in seen
    other = seen.partition("Other alerts")[2]
    assert "KafkaConsumerLag Group ingest is 1200 messages behind" in other
    assert "HostDown" not in other
    assert "HostDown" in page(fleet, "/hosts/primecore4")


def test_a_host_with_an_alert_comes_before_those_in_sync(fleet: Fleet) -> None:
    example(fleet)
    fleet.alerts = [Alert("DiskSpaceLow", "warning", "spark-agent-1", "Disk full", time.time())]
    browser = Browser(fleet)
    browser.enter("vera")
    names = re.findall(r'<h2><a href="/hosts/([^"]+)"', browser.get("/").text)
    calm = [name for name in names if name in {"control-pc-1", "nas-1", "spark-agent-1"}]
    assert calm.index("spark-agent-1") < calm.index("nas-1")


def test_alerts_that_nobody_knows_are_not_none(fleet: Fleet) -> None:
    example(fleet)
    fleet.alerts = None
    seen = page(fleet)
    assert "Alertmanager does not answer" in seen
    assert "0 alerts fire" not in seen


def test_hostile_alerts_do_no_harm(fleet: Fleet) -> None:
    run = fleet.put(job())
    fleet.start(run, "control-pc-1")
    nasty = '<script>alert(1)</script>\x1b[31m"\n' * 500
    fleet.alerts = [Alert(nasty, "critical", host, nasty, 4e9) for host in ("control-pc-1", nasty)]
    browser = Browser(fleet)
    browser.enter("vera")
    text = browser.get("/").text
    assert "<script>alert" not in text
    assert "\x1b" not in text
    assert len(text) < 50_000


def test_a_vpn_without_a_state_is_no_error(fleet: Fleet) -> None:
    example(fleet)
    (fleet.folder / "vpn.json").write_text("{")
    assert "VPN" not in page(fleet)


def alert(name: str, severity: str, **labels: str) -> dict[str, object]:
    return {
        "labels": {"alertname": name, "severity": severity, **labels},
        "annotations": {"summary": f"{name} it is"},
        "startsAt": datetime.fromtimestamp(1_700_000_000, UTC).isoformat(),
        "status": {"state": "active"},
    }


def test_what_fires_is_asked_of_alertmanager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(firing, "_LOOK_SECONDS", 0.02)
    listener = Listener()
    told = [alert("DeadMansSwitch", "none"), alert("Lag", "warning"), alert("Down", "critical")]
    listener.gives = (200, json.dumps(told))

    async def check() -> None:
        asked = Firing(AlertmanagerConfig(url=f"{listener.url}/", username=None), None)
        assert asked.latest() is None
        async with working(asked):
            await until(asked.latest)
            assert asked.latest() == [
                Alert("Down", "critical", "", "Down it is", 1_700_000_000),
                Alert("Lag", "warning", "", "Lag it is", 1_700_000_000),
            ]
            # Who gets no answer knows nothing after a while.
            for bad in [(500, "no"), (200, "{"), (200, '[{"labels": 1}]')]:
                listener.gives = bad
                monkeypatch.setattr(firing, "_STALE_SECONDS", 0.1)
                await until(lambda: asked.latest() is None)
                listener.gives = (200, "[]")
                monkeypatch.setattr(firing, "_STALE_SECONDS", 30.0)
                await until(lambda: asked.latest() == [])

    asyncio.run(check())
    where = urlsplit(listener.asked[0])
    assert where.path == "/api/v2/alerts"
    wanted = {"active": ["true"], "silenced": ["false"], "inhibited": ["false"]}
    assert parse_qs(where.query) == wanted
    listener.server.shutdown()
    listener.server.server_close()


def test_a_damaged_file_of_logins_is_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "page.sqlite"
    path.write_bytes(b"no database" * 1000)
    store = open_store(path)
    assert store.row("SELECT count(*) FROM sessions") == (0,)
    store.close()
    (aside,) = tmp_path.glob("page.damaged-*")
    assert aside.read_bytes().startswith(b"no database")


def test_a_file_of_logins_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    with pytest.raises(sqlite3.OperationalError):
        open_store(tmp_path / "missing" / "page.sqlite")

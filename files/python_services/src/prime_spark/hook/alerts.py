"""Tells Alertmanager what a person should know, as Prometheus does: again and again while it is so.

What is so is derived from the queue's file each time. An alert that is told no more ends by itself
after a while, one that is over is told once: that is how `failed` becomes `fixed`.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Collection, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import httpx
import structlog

from prime_spark.hook.drift import Drift
from prime_spark.hook.queue import Queue
from prime_spark.hook.rules import Rules
from prime_spark.hook.settings import AlertmanagerConfig, Subject
from prime_spark.runtime.health import Health
from prime_spark.runtime.service import Service

_log = structlog.get_logger(__name__)

ALERTMANAGER = "alertmanager"
_LOOK_SECONDS = 5.0
_AGAIN_SECONDS = 60.0
# Some attempts may fail before an alert ends that is not over.
_LASTS_SECONDS = 5 * _AGAIN_SECONDS
_TIMEOUT_SECONDS = 10.0
_TEXT_CHARS = 500

# Labels, which name an alert, and what is told of it.
Alerts = dict[tuple[tuple[str, str], ...], str]


def alerts_of(queue: Queue, drift: Drift, rules: Rules, tells: Collection[Subject]) -> Alerts:
    """Return what is to be told now of some subjects."""
    found: Alerts = {}

    def add(name: str, summary: str, severity: str = "warning", **labels: str) -> None:
        named = {"alertname": name, "severity": severity, **labels}
        found[tuple(sorted(named.items()))] = summary[:_TEXT_CHARS]

    for run in queue.newest_failures(rules.names()) if "failed" in tells else ():
        add("HookRunFailed", f"Run {run.id} {run.state}: {run.reason}", rule=run.rule)
    for run in queue.waiting() if "waiting" in tells else ():
        what = f"Run {run.id} waits for approval: {run.changes} changes"
        add("HookWaitsForApproval", what, rule=run.rule, run=str(run.id))
    for breaker in queue.breakers() if "breakers" in tells else ():
        what = f"{breaker.failures} runs in a row failed; the rule starts no more on this host"
        add("HookBreakerOpen", what, "critical", rule=breaker.rule, host=breaker.host)
    for host in drift.latest() if "drift" in tells else ():
        if host.state == "drifted":
            roles = ", ".join(n for n, role in host.roles.items() if role.state == "drifted")
            add("HookHostDrifted", f"Drifted: {roles}", host=host.host)
    return found


class Teller:
    """Keeps Alertmanager up to date."""

    def __init__(
        self,
        config: AlertmanagerConfig,
        password: str | None,
        queue: Queue,
        rules: Rules,
        health: Health,
    ) -> None:
        self._config = config
        self._auth = (config.username, password) if config.username and password else None
        self._queue = queue
        self._drift = Drift(queue)
        self._rules = rules
        self._health = health
        self._told: Alerts = {}
        health.expect(ALERTMANAGER, essential=False)
        health.set(ALERTMANAGER, True)

    async def run(self, service: Service) -> None:
        """Tell until told to stop."""
        again = 0.0
        url = f"{self._config.url.rstrip('/')}/api/v2/alerts"
        async with httpx.AsyncClient(
            timeout=_TIMEOUT_SECONDS, trust_env=False, auth=self._auth
        ) as client:
            while not await service.pause(_LOOK_SECONDS):
                service.beat(ALERTMANAGER)
                try:
                    now = await asyncio.to_thread(self._found)
                    if now == self._told and time.monotonic() < again:
                        continue
                    content = [*self._content(now)]
                    if content:
                        (await client.post(url, json=content)).raise_for_status()
                except (httpx.HTTPError, httpx.InvalidURL, ValueError, sqlite3.Error) as error:
                    problem = f"{type(error).__name__}: {error}"
                    if self._health.set(ALERTMANAGER, False, problem):
                        _log.warning("cannot tell Alertmanager", error=problem)
                    continue
                self._health.set(ALERTMANAGER, True)
                self._told = now
                again = time.monotonic() + _AGAIN_SECONDS

    def _found(self) -> Alerts:
        return alerts_of(self._queue, self._drift, self._rules, self._config.tells)

    def _content(self, now: Alerts) -> Iterator[Mapping[str, Any]]:
        moment = time.time()
        for labels, summary in {**self._told, **now}.items():
            ends = moment + _LASTS_SECONDS if labels in now else moment
            alert: dict[str, Any] = {
                "labels": dict(labels),
                "annotations": {"summary": summary},
                "endsAt": datetime.fromtimestamp(ends, UTC).isoformat(),
            }
            if self._config.page_url is not None:
                alert["generatorURL"] = self._config.page_url
            yield alert

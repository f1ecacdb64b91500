"""The alerts that fire, as Alertmanager says. The page shows them beside the hosts they concern."""

from __future__ import annotations

import time
from datetime import datetime

import httpx
import msgspec

from prime_spark.hook.settings import AlertmanagerConfig
from prime_spark.runtime.service import Service

_LOOK_SECONDS = 15.0
_TIMEOUT_SECONDS = 10.0
# An answer of this age says nothing about the present.
_STALE_SECONDS = 4 * _LOOK_SECONDS
_MAX_BYTES = 4 * 1024 * 1024
_MAX_ALERTS = 500
_TASK = "firing"
_ACTIVE = {"active": "true", "silenced": "false", "inhibited": "false"}


class Alert(msgspec.Struct, frozen=True):
    """An alert that fires since a Unix time. `host` is empty where no label names one."""

    name: str
    severity: str
    host: str
    summary: str
    since: float


class _Told(msgspec.Struct, rename="camel"):
    """An alert in Alertmanager's API, version 2."""

    labels: dict[str, str]
    starts_at: datetime
    annotations: dict[str, str] = {}


class Firing:
    """Asks Alertmanager again and again."""

    def __init__(self, config: AlertmanagerConfig, password: str | None) -> None:
        self._url = f"{config.url.rstrip('/')}/api/v2/alerts"
        self._auth = (config.username, password) if config.username and password else None
        self._alerts: list[Alert] = []
        self._asked = 0.0

    def latest(self) -> list[Alert] | None:
        """Return the alerts that fire, the most severe and newest first; None if unknown."""
        return self._alerts if time.monotonic() - self._asked < _STALE_SECONDS else None

    async def run(self, service: Service) -> None:
        """Ask until told to stop. An Alertmanager that does not answer is not known to be quiet."""
        async with httpx.AsyncClient(
            timeout=_TIMEOUT_SECONDS, trust_env=False, auth=self._auth
        ) as client:
            while True:
                service.beat(_TASK)
                try:
                    told = msgspec.json.decode(await self._ask(client), type=list[_Told])
                except (httpx.HTTPError, httpx.InvalidURL, msgspec.DecodeError, ValueError):
                    # The teller asks the same server, and says in health and log what is wrong.
                    pass
                else:
                    self._alerts = _in_order(told)
                    self._asked = time.monotonic()
                if await service.pause(_LOOK_SECONDS):
                    return

    async def _ask(self, client: httpx.AsyncClient) -> bytes:
        found = bytearray()
        async with client.stream("GET", self._url, params=_ACTIVE) as answer:
            answer.raise_for_status()
            async for piece in answer.aiter_bytes():
                found += piece
                if len(found) > _MAX_BYTES:
                    raise ValueError(f"expected at most {_MAX_BYTES} bytes of alerts")
        return bytes(found)


def _in_order(told: list[_Told]) -> list[Alert]:
    alerts = [
        Alert(
            name=alert.labels.get("alertname", ""),
            severity=alert.labels.get("severity", ""),
            host=alert.labels.get("host", ""),
            summary=alert.annotations.get("summary", ""),
            since=alert.starts_at.timestamp(),
        )
        for alert in told
        if alert.labels.get("severity") != "none"
    ]
    alerts.sort(key=lambda alert: (alert.severity != "critical", -alert.since, alert.name))
    return alerts[:_MAX_ALERTS]

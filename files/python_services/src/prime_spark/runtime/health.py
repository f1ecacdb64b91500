"""What a service knows about itself and what it depends on, for /health."""

from __future__ import annotations

import time
from typing import Literal

import msgspec

from prime_spark import __version__

Status = Literal["ok", "degraded", "failing"]


class Component(msgspec.Struct):
    """State of one thing the service depends on or does."""

    ok: bool
    detail: str
    since: float
    essential: bool


class Health:
    """The state of a service's components; answers /health.

    A component is essential when the service cannot do its work without it. Status is `failing`
    (HTTP 503) while an essential component is not ok, `degraded` (200) while another is not,
    else `ok` (200).
    """

    def __init__(self, service: str) -> None:
        self._service = service
        self._started = time.time()
        self._components: dict[str, Component] = {}

    def expect(self, name: str, *, essential: bool, detail: str = "not yet connected") -> None:
        """Declare a component, not ok until `set` says otherwise."""
        self._components[name] = Component(False, detail, time.time(), essential)

    def set(self, name: str, ok: bool, detail: str = "") -> bool:
        """Record the state of a declared component; return whether `ok` changed."""
        component = self._components[name]
        changed = component.ok != ok
        if changed:
            component.since = time.time()
        component.ok, component.detail = ok, detail
        return changed

    def is_ok(self, name: str) -> bool:
        """Return whether component `name` is ok."""
        return self._components[name].ok

    @property
    def status(self) -> Status:
        """The state of the whole service."""
        bad = [component for component in self._components.values() if not component.ok]
        if any(component.essential for component in bad):
            return "failing"
        return "degraded" if bad else "ok"

    def response(self) -> tuple[int, bytes]:
        """Return the HTTP status and the JSON body of /health."""
        now = time.time()
        body = {
            "service": self._service,
            "version": __version__,
            "status": self.status,
            "uptime_seconds": round(now - self._started, 1),
            "components": {
                name: {
                    "ok": component.ok,
                    "detail": component.detail,
                    "essential": component.essential,
                    "seconds": round(now - component.since, 1),
                }
                for name, component in self._components.items()
            },
        }
        return (503 if self.status == "failing" else 200), msgspec.json.encode(body)

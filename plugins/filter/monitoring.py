"""Filters of the role ``monitoring``: settings of alerts, secrets of receivers."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from ansible.errors import AnsibleFilterError

DURATION = re.compile(r"([0-9]+(ms|[smhdwy]))+")
NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
# What each type of receiver needs besides its name; `secret` goes into a file of its own.
RECEIVERS = {
    "email": {"to", "from", "smarthost"},
    "webhook": {"url"},
    "ntfy": {"url"},
    "slack": {"channel", "secret"},
    "telegram": {"chat_id", "secret"},
}


def alert_settings(
    table: Mapping[str, Mapping[str, Any]], changes: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """The role's table of alerts with an inventory's changes to it.

    A change to an alert or setting that does not exist would be without effect, so it is refused.
    """
    settings = {alert: dict(row) for alert, row in table.items()}
    for alert, row in changes.items():
        if alert not in settings:
            raise AnsibleFilterError(
                f"monitoring_alerts: there is no alert {alert!r}{_meant(alert, settings)}"
            )
        for name, value in row.items():
            where = f"monitoring_alerts.{alert}.{name}"
            if name not in settings[alert]:
                raise AnsibleFilterError(
                    f"{where}: there is no such setting{_meant(name, settings[alert])}; "
                    f"{alert} has {', '.join(sorted(settings[alert]))}"
                )
            _check(where, settings[alert][name], value)
            settings[alert][name] = value
    return settings


def _check(where: str, ours: Any, value: Any) -> None:
    """Refuse a value that is not of the kind of ours: a duration or a number."""
    if isinstance(ours, str):
        if not isinstance(value, str) or not DURATION.fullmatch(value):
            raise AnsibleFilterError(f"{where} is {value!r}, expected a duration such as 5m")
    elif isinstance(value, bool) or not isinstance(value, int | float):
        raise AnsibleFilterError(f"{where} is {value!r}, expected a number")


def _meant(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f", did you mean {close[0]}?" if close else ""


def alert_receivers(receivers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The receivers of alerts, each with its severities; what cannot work is refused."""
    seen: set[str] = set()
    for receiver in receivers:
        name = str(receiver.get("name", ""))
        where = f"monitoring_receivers: {name!r}"
        if not NAME.fullmatch(name) or name in seen or name in ("deadman", "nobody"):
            raise AnsibleFilterError(
                f"{where}: a name is lower-case letters, digits, _ and -, given once, "
                "and not deadman or nobody"
            )
        seen.add(name)
        kind = receiver.get("type")
        if kind not in RECEIVERS:
            raise AnsibleFilterError(
                f"{where}: type is {kind!r}, expected one of {', '.join(sorted(RECEIVERS))}"
            )
        if missing := sorted(RECEIVERS[kind] - {key for key, value in receiver.items() if value}):
            raise AnsibleFilterError(f"{where}: type {kind} needs {', '.join(missing)}")
        unknown = set(receiver.get("severities", [])) - {"critical", "warning"}
        if unknown:
            raise AnsibleFilterError(f"{where}: no alert has the severity {min(unknown)!r}")
    return [{"severities": ["critical", "warning"], **receiver} for receiver in receivers]


def alert_receiver_secrets(receivers: list[dict[str, Any]]) -> dict[str, str]:
    """The secrets of receivers by name, for ``credential_files``."""
    return {
        str(receiver["name"]): str(receiver["secret"])
        for receiver in receivers
        if receiver.get("secret")
    }


class FilterModule:
    """Registers the filters."""

    def filters(self) -> dict[str, Any]:
        return {
            "alert_receivers": alert_receivers,
            "alert_receiver_secrets": alert_receiver_secrets,
            "alert_settings": alert_settings,
        }

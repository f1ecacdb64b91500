"""Faults that someone has to be told of: the alert arrives at its receiver, then its end."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.system.alerts.faults import faults
from tests.system.alerts.proof import listed, prepared, prove
from tests.system.fleet.fleet import FULL

QUICK = ("API stopped", "telemetry stopped", "Prometheus stopped")


@pytest.fixture(scope="module")
def short_durations(connections: None) -> Iterator[None]:
    with prepared():
        yield


@pytest.mark.looks
def test_the_list_is_what_the_faults_cause() -> None:
    assert {fault.alert: name for name, fault in faults().items()} == listed()


@pytest.mark.parametrize("name", list(faults()) if FULL else QUICK)
def test_an_alert_fires_and_is_resolved(name: str, short_durations: None) -> None:
    fired, resolved = prove(faults()[name])
    print(f"{name}: fires after {fired:.0f} s, resolved after {resolved:.0f} s")

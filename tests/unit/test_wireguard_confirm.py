"""wireguard_confirm: what a change of the VPN has to show before its timer is stopped."""

from __future__ import annotations

import time
from typing import Any

import pytest
from ansible_collections.prime_spark.fleet.plugins.modules import wireguard_confirm as module

ARMED_BY = "198.51.100.9 40000 198.51.100.11 22"
PEERS = {"hub": {"address": "10.90.8.2"}, "spoke": {"address": "10.90.8.3"}}


@pytest.fixture
def waiting(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The state of a change that waits, seen from another connection; nobody answers."""
    state = {"connection": ARMED_BY, "fresh": ["hub", "spoke"], "deadline": time.time() + 60}
    monkeypatch.setattr(module, "pending", lambda: state)
    monkeypatch.setattr(module, "client_connection", lambda: "198.51.100.9 40001 198.51.100.11 22")
    monkeypatch.setattr(module, "known_peers", lambda: PEERS)
    answering(monkeypatch)
    return state


def answering(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    """Who answers a ping."""
    monkeypatch.setattr(module, "ping", lambda address, *_: 0.001 if address in addresses else None)


def look() -> dict[str, Any]:
    return dict(module.look("wg0", 0))


def test_a_peer_that_answers_confirms(
    waiting: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    answering(monkeypatch, "10.90.8.3")
    seen = look()
    assert (seen["problem"], seen["answering"]) == ("", ["spoke"])


def test_the_connection_that_made_the_change_confirms_nothing(
    waiting: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    answering(monkeypatch, "10.90.8.2", "10.90.8.3")
    monkeypatch.setattr(module, "client_connection", lambda: ARMED_BY)
    assert "expected a new connection to confirm the change" in look()["problem"]


def test_on_the_controller_itself_the_operators_session_is_no_obstacle(
    waiting: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "client_connection", lambda: ARMED_BY)
    answering(monkeypatch, "10.90.8.3")
    assert module.look("wg0", 0, local=True)["problem"] == ""
    answering(monkeypatch)
    assert "to answer through wg0 as before" in module.look("wg0", 0, local=True)["problem"]


def test_peers_that_answered_before_and_are_silent_now_are_a_problem(
    waiting: dict[str, Any],
) -> None:
    assert look()["problem"] == (
        "expected one of hub (10.90.8.2), spoke (10.90.8.3) to answer through wg0 as before, "
        "seen: no answer"
    )


def test_where_nobody_answered_before_the_connection_is_enough(waiting: dict[str, Any]) -> None:
    waiting["fresh"] = []
    assert look()["problem"] == ""


def test_peers_that_have_left_are_not_asked(waiting: dict[str, Any]) -> None:
    waiting["fresh"] = ["printer"]
    assert look()["problem"] == ""


def test_after_the_timer_it_is_too_late(
    waiting: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "pending", lambda: None)
    monkeypatch.setattr(module, "reverted", lambda: {"armed": 1, "reverted": 90})
    assert "the previous state came back at " in look()["problem"]

"""What the dispatcher makes of the agents' heartbeats."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal

import pytest

from prime_spark.dispatcher.fleet import Fleet, Verdict
from prime_spark.dispatcher.settings import AgentAddress
from prime_spark.dispatcher.store import Attempt
from prime_spark.tasks.protocol import TASK_TYPES, HeartbeatMessage


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Return a function that lets time pass."""
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])

    def passes(seconds: float) -> None:
        clock[0] += seconds

    return passes


@pytest.fixture
def fleet() -> Fleet:
    addresses = [AgentAddress(name=name, url=f"http://{name}:1") for name in "ab"]
    return Fleet(addresses, dead_seconds=15)


def beat(
    instance: str = "1", *, types: tuple[Literal["llm"], ...] | None = None
) -> HeartbeatMessage:
    return HeartbeatMessage(instance, types or TASK_TYPES, capacity=1, running=(), version="0")


def attempt(agent: str = "a", task_id: str = "t") -> Attempt:
    return Attempt(task_id, "llm", "HIGH", b"{}", 1, agent, "1", ())


def test_restarted_agent(fleet: Fleet) -> None:
    fleet.see({"a": beat()})
    assert fleet.verdict(attempt()) is Verdict.ALIVE
    fleet.see({"a": beat("2")})
    assert fleet.verdict(attempt()) is Verdict.RESTARTED


def test_silent_agent_is_dead_once_watched_long_enough(
    fleet: Fleet, now: Callable[[float], None]
) -> None:
    assert fleet.verdict(attempt()) is Verdict.UNKNOWN
    fleet.see({})
    now(15)
    assert fleet.verdict(attempt()) is Verdict.UNKNOWN
    now(1)
    assert fleet.verdict(attempt()) is Verdict.DEAD


def test_blind_watch_makes_nobody_dead(fleet: Fleet, now: Callable[[float], None]) -> None:
    """Redis was away: its keys ran out meanwhile, and nobody could renew them."""
    fleet.see({"a": beat()})
    now(60)
    fleet.blind()
    assert fleet.verdict(attempt()) is Verdict.UNKNOWN
    fleet.see({})
    assert fleet.verdict(attempt()) is Verdict.UNKNOWN
    now(16)
    assert fleet.verdict(attempt()) is Verdict.DEAD


def test_agent_that_left_the_inventory(fleet: Fleet) -> None:
    fleet.see({})
    assert fleet.verdict(attempt("gone")) is Verdict.DEAD
    fleet.took(attempt("gone"))
    fleet.gave_back(attempt("gone"))


def test_who_is_free(fleet: Fleet, now: Callable[[float], None]) -> None:
    assert fleet.free() == []
    fleet.see({"a": beat(), "b": beat(types=("llm",))})
    assert [name for name, _ in fleet.free()] == ["a", "b"]
    fleet.took(attempt("a"))
    assert [name for name, _ in fleet.free()] == ["b"]
    fleet.cool_down("b", 5)
    fleet.cool_down("b", 1)
    assert fleet.free() == []
    assert fleet.others("llm", ["a"])
    assert not fleet.others("voice_synthesis", ["a"])
    now(5)
    fleet.gave_back(attempt("a"))
    assert [name for name, _ in fleet.free()] == ["a", "b"]


def test_an_agent_that_is_down_may_come_back_and_do_a_task(fleet: Fleet) -> None:
    assert fleet.others("llm", ["a"]), "b was never seen: nobody knows"
    fleet.see({"a": beat(), "b": beat()})
    fleet.see({"a": beat()})
    assert fleet.others("llm", ["a"]), "b has said before that it can"
    fleet.see({"a": beat(), "b": beat(types=("llm",))})
    fleet.see({"a": beat()})
    assert not fleet.others("voice_synthesis", ["a"])
    assert not fleet.others("llm", ["a", "b"])

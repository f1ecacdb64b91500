"""The table at the end of a run: what it shows of a host, and when the run fails for it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from ansible_collections.prime_spark.fleet.plugins.action import fleet_table as module

WELL = {
    "seen": {"handshakes": {"hub": 12}, "mounts": ["/mnt/nas"], "containers": 2, "units": 3},
    "problems": [],
    "left_out": [],
}
ARGUMENTS: dict[str, Any] = {
    "hosts": ["one"],
    "health": {"one": WELL},
    "telemetry": {"pump": 4.0},
    "devices": {"one": "pump"},
    "fresh": 60,
    "groups": {"one": ["wireguard"]},
    "deferred": [],
    "telemetry_waits_for": [],
}


def run(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> tuple[dict[str, Any], str]:
    """The result for these arguments, and what was printed."""
    shown: list[str] = []
    monkeypatch.setattr(module.ActionBase, "run", lambda *_: {})
    action = module.ActionModule.__new__(module.ActionModule)
    action._task = SimpleNamespace(args={**ARGUMENTS, **changes})
    action._display = SimpleNamespace(display=shown.append)
    return dict(action.run(None, {})), "\n".join(shown)


def test_a_host_that_is_well_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    result, shown = run(monkeypatch)
    assert "failed" not in result
    cells = [cell.strip() for cell in shown.splitlines()[2].split("  ") if cell.strip()]
    assert cells == ["one", "wireguard", "12 s", "/mnt/nas", "2 ok", "3 ok", "4 s ago"]
    assert shown.splitlines()[-1] == "all well"


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"telemetry": {"pump": 61.0}},
            "one: newest telemetry row: 61 s ago, expected within 60 s",
        ),
        ({"telemetry": {}}, "one: newest telemetry row: none, expected within 60 s"),
        ({"health": {"one": {**WELL, "problems": ["x is down"]}}}, "one: x is down"),
        ({"health": {}}, "one: failed earlier in this run, nothing more is known of it"),
    ],
)
def test_what_is_wrong_fails_the_run(
    changes: dict[str, Any], problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    result, shown = run(monkeypatch, **changes)
    assert result["failed"] is True
    assert result["msg"] == f"1 thing is wrong:\n{problem}"
    assert f"WRONG    {problem}" in shown


def test_a_host_that_was_away_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    result, shown = run(monkeypatch, deferred=["one"], health={})
    assert "failed" not in result
    assert "deferred one: it was unreachable, the next run catches it up" in shown
    assert shown.splitlines()[-1] == "all others well"


def test_the_roles_give_way_in_a_narrow_terminal() -> None:
    row = {**dict.fromkeys(module.COLUMNS, "x"), "roles": "r" * 100}
    assert all(len(line) <= 80 for line in module.table([row], 80))

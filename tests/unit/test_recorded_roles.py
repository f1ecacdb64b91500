"""recorded_roles: the roles whose trees or projects a host has."""

from __future__ import annotations

from pathlib import Path

from ansible_collections.prime_spark.fleet.plugins.module_utils import state as module


def test_each_role_is_named_once_whatever_else_lies_there(tmp_path: Path) -> None:
    for name, text in {
        "1-broken.json": "{",
        "2-empty.json": "",
        "3-common.json": '{"role": "common"}',
        "4-api.json": '{"role": "api"}',
        "5-api.json": '{"role": "api"}',
        "6-nobody.json": '{"role": ""}',
        "7-other.before": '{"role": "redis"}',
    }.items():
        (tmp_path / name).write_text(text)
    assert module.recorded_roles(str(tmp_path)) == ["api", "common"]


def test_a_bare_host_had_none(tmp_path: Path) -> None:
    assert module.recorded_roles(str(tmp_path / "missing")) == []

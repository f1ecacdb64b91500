"""docs/roles has a page for each role, and it says what the role's files say."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import role_pages

ROOT = Path(__file__).resolve().parents[2]


def test_the_pages_are_those_of_the_roles() -> None:
    assert role_pages.stale() == [], "run `make role-pages`"


def test_a_changed_page_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, content in role_pages.pages().items():
        (tmp_path / name).write_text(content)
    monkeypatch.setattr(role_pages, "DOCS", tmp_path)
    assert role_pages.stale() == []
    (tmp_path / "redis.md").write_text("something else")
    (tmp_path / "gone.md").write_text("a role that left")
    assert role_pages.stale() == ["gone.md", "redis.md"]


def test_a_page_says_what_an_operator_asks() -> None:
    redis = role_pages.page("redis")
    assert "| `redis_port` | int | `6379` |" in redis
    assert "data in `redis_data_directory`; only a purge removes it" in redis
    assert "`docker` on the same host" in redis
    assert "Nobody new" in redis


def test_a_user_who_may_log_in_is_named() -> None:
    assert "In addition: `spark-nas`" in role_pages.page("nas_server")
    assert "Nobody new" in role_pages.page("hook")


def test_marks_of_ansible_are_code() -> None:
    assert role_pages.text(["With O(a_state=absent), C(x)", "or V(y|z)."]) == (
        "With `a_state=absent`, `x` or `y\\|z`."
    )

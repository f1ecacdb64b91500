"""compose_project: the hash of its configuration tells exactly which service has to restart."""

from __future__ import annotations

import sys
from typing import Any

action: Any = sys.modules["prime_spark_action.compose_project"].ActionModule
DIRECTORY = "/opt/prime-spark/stack/example"


def hashes(files: dict[str, str], secrets: dict[str, str] | None = None) -> dict[str, str]:
    def listed(contents: dict[str, str]) -> list[dict[str, str]]:
        return [
            {"path": f"{DIRECTORY}/{path}", "content": text, "mode": "0644"}
            for path, text in contents.items()
        ]

    arguments = {"files": listed(files), "secret_files": listed(secrets or {})}
    return dict(action.config_hashes(arguments, DIRECTORY))


FILES = {"compose.yml": "services: {}", "config/a/x.conf": "1", "config/b/x.conf": "1"}


def test_a_changed_file_changes_its_own_service_only() -> None:
    before = hashes(FILES)
    after = hashes({**FILES, "config/a/x.conf": "2"})
    assert set(before) == {"a", "b"}
    assert after["a"] != before["a"]
    assert after["b"] == before["b"]


def test_a_changed_secret_counts_too() -> None:
    secret = {"config/a/secret/key": "1"}
    assert hashes(FILES, secret)["a"] != hashes(FILES)["a"]
    assert hashes(FILES, secret)["a"] != hashes(FILES, {"config/a/secret/key": "2"})["a"]


def test_files_outside_config_change_no_hash() -> None:
    assert hashes({**FILES, "compose.yml": "other"}) == hashes(FILES)


def test_the_order_of_files_does_not_matter() -> None:
    assert hashes(dict(reversed(FILES.items()))) == hashes(FILES)

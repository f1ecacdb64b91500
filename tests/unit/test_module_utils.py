"""What modules, plugins, the lab and the tools share: the lock."""

from __future__ import annotations

from pathlib import Path

import pytest
from ansible_collections.prime_spark.fleet.plugins.module_utils.lock import exclusive


@pytest.mark.parametrize("name", ["", "made.lock"], ids=["directory", "file"])
def test_a_lock_is_held_once_and_free_after_a_failure(tmp_path: Path, name: str) -> None:
    path, waited = tmp_path / name, []
    with pytest.raises(ZeroDivisionError), exclusive(path):
        with pytest.raises(TimeoutError), exclusive(path, 0.3, waiting=lambda: waited.append(1)):
            pytest.fail("two hold it")
        raise ZeroDivisionError
    assert waited == [1]
    with exclusive(path, 0):
        pass


def test_a_lock_does_not_follow_a_link_to_a_file_of_somebody_else(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("as it was")
    (tmp_path / "lock").symlink_to(precious)
    with pytest.raises(OSError), exclusive(tmp_path / "lock"):
        pass
    assert precious.read_text() == "as it was"

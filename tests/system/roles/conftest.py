"""The role that the molecule scenario NAME is about: its hosts, its plays, what it leaves."""

from __future__ import annotations

import os

import pytest

from tests.system.fleet.fleet import disconnect_all


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without a scenario there is nothing to look at."""
    if "MOLECULE_SCENARIO_NAME" not in os.environ:
        for item in items:
            if "system/roles" in str(item.path):
                item.add_marker(pytest.mark.skip(reason="run by `molecule test -s ROLE`"))


@pytest.fixture(scope="session", autouse=True)
def connections() -> object:
    """End the connections that tests share."""
    yield
    disconnect_all()

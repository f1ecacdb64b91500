"""Tests of the running, provisioned lab: `python -m lab up && ansible-playbook site.yml` first."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
for path in (ROOT, ROOT / "files" / "python_services" / "src"):
    if str(path) not in sys.path:
        sys.path.insert(0, str(path))

from testinfra.host import Host  # noqa: E402

from tests.system.fleet import fleet  # noqa: E402

# Longer than any deadline within a test: this only ends what hangs.
TEST_SECONDS = 240


def pytest_configure(config: pytest.Config) -> None:
    """Declare the markers of these tests."""
    config.addinivalue_line("markers", "tags: runs ansible-playbook with single tags")
    config.addinivalue_line("markers", "reboot: reboots every host")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Disturbing tests come last, so that what they leave undone fails nothing else."""
    for item in items:
        if Path(__file__).parent in item.path.parents and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(TEST_SECONDS))
    items.sort(key=lambda item: [bool(item.get_closest_marker(m)) for m in ("reboot", "tags")])


@pytest.fixture
def host(request: pytest.FixtureRequest) -> Host:
    """The host that the decorator `on` names."""
    return fleet.connect(request.param)


@pytest.fixture(scope="session", autouse=True)
def connections() -> Iterator[None]:
    """Ends the shared SSH connections."""
    yield
    fleet.disconnect_all()

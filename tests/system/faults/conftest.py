"""Faults on the provisioned lab: `make lab-up site` first. Every test leaves the fleet well."""

from __future__ import annotations

import json
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]
for path in (ROOT, ROOT / "files" / "python_services" / "src"):
    if str(path) not in sys.path:
        sys.path.insert(0, str(path))

from tests.system.faults import site  # noqa: E402
from tests.system.faults.delivery import FIGURES  # noqa: E402
from tests.system.fleet import fleet  # noqa: E402
from tests.system.fleet.condition import wait_all_well  # noqa: E402

# Longer than any deadline within a test: this only ends what hangs.
TEST_SECONDS = 1800 if fleet.FULL else 900
WELL_SECONDS = 180


def pytest_configure(config: pytest.Config) -> None:
    """Declare the markers of these tests."""
    config.addinivalue_line("markers", "last: leaves the most to be made up for, so comes last")
    config.addinivalue_line("markers", "looks: changes nothing of the fleet, it only looks")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Bound every test; what kills runs of Ansible comes last."""
    for item in items:
        if Path(__file__).parent in item.path.parents and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(TEST_SECONDS))
    items.sort(key=lambda item: bool(item.get_closest_marker("last")))


def heal_all() -> None:
    """Undo what a test that failed has left cut off."""
    for name, row in json.loads(fleet.lab("status", "--json"))["hosts"].items():
        if row["state"] == "cut":
            fleet.lab("heal", name)


@pytest.fixture(scope="session")
def connections() -> Iterator[None]:
    """Ends the shared SSH connections, and what a test that failed has left cut off."""
    yield
    heal_all()
    fleet.disconnect_all()


# Whether the test before this one only looked, and passed: the fleet is as it found it.
WELL = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    """Note what the next test may rely on."""
    report = yield
    looked = report.when == "call" and bool(item.get_closest_marker("looks"))
    if report.when != "teardown" or report.failed:
        item.session.stash[WELL] = looked and report.passed
    return report


@pytest.fixture(autouse=True)
def fleet_is_well(connections: None, request: pytest.FixtureRequest) -> Iterator[None]:
    """A test finds the fleet well, whatever the one before it has left behind."""
    if request.session.stash.get(WELL, False):
        yield
        return
    heal_all()
    try:
        wait_all_well(WELL_SECONDS)
    except AssertionError:
        # Only that one has failed then, not this one, too.
        site.run()
        wait_all_well(WELL_SECONDS)
    yield


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show how long it took to recover."""
    if not FIGURES:
        return
    terminalreporter.section("seconds from the end of a fault")
    terminalreporter.write_line(f"{'samples':>8} {'stored':>7} {'healthy':>8}  fault")
    for figure in FIGURES:
        terminalreporter.write_line(
            f"{figure.samples:8d} {figure.stored:7.1f} {figure.healthy:8.1f}  {figure.fault}"
        )

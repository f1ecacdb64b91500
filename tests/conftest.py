"""Makes the collection importable, leaves out long forms unless PRIME_SPARK_FULL=1."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

import pytest
from ansible.plugins.loader import init_plugin_loader

ROOT = Path(__file__).resolve().parents[1]
# Plugins are imported, and found by templates, under the names of the collection.
init_plugin_loader([str(ROOT / "collections")])
LONG_FORMS = [
    entry["test"]
    for entry in tomllib.loads((ROOT / "tests" / "stages.toml").read_text())["long_form"]
]


def is_long_form(item: pytest.Item) -> bool:
    """Whether the list has the test, its function or its file."""
    name = f"{item.path.relative_to(ROOT)}::{item.nodeid.partition('::')[2]}"
    return not {name, name.partition("[")[0], name.partition("::")[0]}.isdisjoint(LONG_FORMS)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the long forms; pytest's last line counts them."""
    if os.environ.get("PRIME_SPARK_FULL") == "1":
        return
    left_out = [item for item in items if is_long_form(item)]
    if left_out:
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)

"""`make pin-images` writes what a real registry says, and nothing that it does not say."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import registry
from lab.common import CACHE

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with registry.writable(CACHE / "registry") as address:
        yield address


def run(inventory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, ROOT / "tools" / "pin_images.py", "--inventory", inventory, *arguments],
        capture_output=True,
        text=True,
    )


def inventory(directory: Path, *lines: str) -> Path:
    path = directory / "group_vars" / "all" / "images.yml"
    path.parent.mkdir(parents=True)
    path.write_text("---\n# Kept.\nimages:\n" + "".join(f"  {line}\n" for line in lines))
    return path


def test_a_tag_gets_the_digest_of_its_registry(
    tmp_path: Path, server: str, references: dict[str, str]
) -> None:
    image, _, digest = references["redis"].partition("@")
    local = f"{server}/{image.partition('/')[2]}"
    path = inventory(tmp_path, f"redis: {local}  # a cache")
    done = run(tmp_path, "--plain-http", "--architectures", "amd64")
    assert done.returncode == 0, done.stderr
    assert path.read_text() == (f'---\n# Kept.\nimages:\n  redis: "{local}@{digest}"  # a cache\n')
    again = run(tmp_path, "--plain-http", "--architectures", "amd64")
    assert again.returncode == 0 and "is pinned" in again.stdout


def test_what_cannot_be_pinned_stays_as_it_is(
    tmp_path: Path, server: str, references: dict[str, str]
) -> None:
    image = references["redis"].partition("@")[0].partition("/")[2]
    path = inventory(tmp_path, f"redis: {server}/{image}", f"gone: {server}/no-such/image:1")
    before = path.read_text()
    done = run(tmp_path, "--plain-http")
    assert done.returncode == 1
    assert re.search(
        r"^WRONG    redis: .*: not built for arm64, only for amd64$", done.stderr, re.M
    )
    assert re.search(r"^WRONG    gone: .*unknown", done.stderr, re.M)
    assert path.read_text() == before


def test_a_directory_that_is_no_inventory_is_refused(tmp_path: Path) -> None:
    done = run(tmp_path)
    assert done.returncode == 2 and "an inventory directory?" in done.stderr

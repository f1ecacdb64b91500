"""The images are built before any of these tests runs; nothing happens when they are current."""

from __future__ import annotations

import pytest

from lab import image_builds as images


@pytest.fixture(scope="session", autouse=True)
def references() -> dict[str, str]:
    """{name: reference} of all images."""
    return images.ensure_images(print)

"""Package sources come from the machine's configuration, whatever it calls its archive."""

from __future__ import annotations

import pytest

from lab.mirror import MirrorError, sources_from_listing

LISTING = """\
Debian|Debian|bookworm|main|http://archive.example/debian/
Debian|Debian|bookworm|contrib|http://archive.example/debian/
Debian|Debian|bookworm-updates|main|http://archive.example/debian/
Debian|Debian-Security|bookworm-security|main|http://security.example/
Debian Backports|Debian Backports|bookworm-backports|main|http://backports.example/
Tools|Tools|stable|main|https://tools.example/deb/
"""


def test_release_updates_and_security() -> None:
    assert sources_from_listing(LISTING, "trixie") == [
        "deb http://archive.example/debian/ trixie main",
        "deb http://archive.example/debian/ trixie-updates main",
        "deb http://security.example/ trixie-security main",
    ]


def test_without_updates_and_security() -> None:
    release = LISTING.splitlines()[0]
    assert sources_from_listing(release, "trixie") == [
        "deb http://archive.example/debian/ trixie main"
    ]


def test_a_machine_without_debian() -> None:
    with pytest.raises(MirrorError, match="no Debian archive"):
        sources_from_listing("Ubuntu|Ubuntu|noble|main|http://archive.example/ubuntu/", "trixie")

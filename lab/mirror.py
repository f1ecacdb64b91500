"""Debian package sources for the lab's roots, taken from this machine's own apt configuration.

No mirror is named here: whatever this machine installs from is reachable from it.
"""

from __future__ import annotations

import functools

from lab.common import LabError, run

_FORMAT = "$(ORIGIN)|$(LABEL)|$(CODENAME)|$(COMPONENT)|$(REPO_URI)"


class MirrorError(LabError):
    """This machine's apt sources name no Debian archive."""


def debian_sources(suite: str) -> list[str]:
    """Return `deb` lines for a suite ("trixie"): the release, its updates, its security suite.

    The archive's address is the one of the configured Debian release; updates and security are
    left out where this machine has no such source.
    """
    return sources_from_listing(_listing(), suite)


@functools.cache
def _listing() -> str:
    return run(["apt-get", "indextargets", "--format", _FORMAT, "Created-By: Packages"]).stdout


def sources_from_listing(listing: str, suite: str) -> list[str]:
    """Turn `apt-get indextargets` output in `_FORMAT` into the `deb` lines of a suite."""
    release = updates = security = ""
    for line in listing.splitlines():
        origin, label, codename, component, uri = line.split("|", 4)
        if origin != "Debian" or component != "main":
            continue
        if label == "Debian-Security":
            security = security or uri
        elif label == "Debian" and codename.endswith("-updates"):
            updates = updates or uri
        elif label == "Debian" and "-" not in codename:
            release = release or uri
    if not release:
        raise MirrorError(
            "apt knows no Debian archive: this machine's sources need a Debian release "
            "(component main), and `apt-get update` has to have run"
        )
    lines = [f"deb {release} {suite} main"]
    if updates:
        lines.append(f"deb {updates} {suite}-updates main")
    if security:
        lines.append(f"deb {security} {suite}-security main")
    return lines

#!/usr/bin/env python3
"""Tag the version of galaxy.yml as a release, unless something of it is missing.

Refused: changes that are not committed, a version that CHANGELOG.md does not begin with, an entry
that does not say what an operator has to do, a tag that exists. Pushes nothing.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
VERSION = re.compile(r"\d+\.\d+\.\d+")


def git(root: Path, *arguments: str) -> str:
    """Run Git and return what it prints."""
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def entry_of(changelog: str) -> tuple[str, str]:
    """The version and the text of a changelog's first entry; empty where there is none."""
    found = re.search(r"^## (\S+).*?\n(.*?)(?=^## |\Z)", changelog, re.MULTILINE | re.DOTALL)
    return (found[1], found[2].strip()) if found else ("", "")


def missing(root: Path) -> list[str]:
    """What keeps the version from being released, a line each."""
    version = str(yaml.safe_load((root / "galaxy.yml").read_text()).get("version", ""))
    path = root / "CHANGELOG.md"
    latest, entry = entry_of(path.read_text() if path.exists() else "")
    found = []
    if not VERSION.fullmatch(version):
        found.append(f"galaxy.yml: version is {version!r}, expected three numbers such as 1.2.0")
    if latest != version:
        what = f"begins with {latest}" if latest else "has no entry"
        found.append(f"CHANGELOG.md {what}, expected an entry `## {version}`, as in galaxy.yml")
    elif "**To do" not in entry:
        found.append(f"CHANGELOG.md: {version} lacks the part `**To do ...**` for operators")
    if changed := git(root, "status", "--porcelain").splitlines():
        found.append(f"the tree has changes that are not committed: {changed[0].strip()}")
    if git(root, "tag", "--list", f"v{version}"):
        found.append(f"the tag v{version} exists: raise the version in galaxy.yml")
    return found


def main() -> int:
    """Return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="name what is missing, tag nothing")
    arguments = parser.parse_args()
    found = missing(ROOT)
    for line in found:
        print(f"REFUSED  {line}", file=sys.stderr)
    if found:
        return 1
    version, entry = entry_of((ROOT / "CHANGELOG.md").read_text())
    if arguments.check:
        print(f"v{version} can be released")
        return 0
    git(ROOT, "tag", "--annotate", f"v{version}", "--message", f"Prime Spark {version}\n\n{entry}")
    print(f"tagged v{version}; publish it with `git push origin v{version}`")
    return 0


if __name__ == "__main__":
    sys.exit(main())

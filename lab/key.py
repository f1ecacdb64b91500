"""The key of a converged fleet: a hash over everything that leads to it.

Two trees with one key converge the same fleet. Tests and documents are not part of it, secrets
neither: they come with a snapshot.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

from lab import bases
from lab.common import CACHE, CHECKOUT, LabError
from lab.topology import SUITES

# What a run of site.yml on the lab reads, by git's pathspecs.
INPUTS = (
    "ansible.cfg",
    "site.yml",
    "playbooks",
    "roles",
    "plugins",
    "meta",
    "collections",
    "inventories/lab",
    "files/python_services/dags",
    "files/python_services/locks",
    "files/python_services/pyproject.toml",
    "files/python_services/src",
    "requirements",
    "lab",
    "tools/bootstrap",
    "tools/make_secrets.py",
    "tools/vault.py",
    "tools/vault-encrypts",
    "tools/vault-password-lab",
)
_DOCUMENT = re.compile(r"\.md$")


def key(checkout: Path = CHECKOUT) -> str:
    """The key of a tree on this machine, 16 hexadecimal digits."""
    digest = hashlib.sha256(json.dumps([_bases(), _images()]).encode())
    for path in sorted(set(inputs(checkout))):
        full = checkout / path
        if full.is_symlink():
            content, kind = os.readlink(full).encode(), "l"
        else:
            try:
                content = full.read_bytes()
            except FileNotFoundError:  # git still knows a deleted file
                continue
            kind = "x" if os.access(full, os.X_OK) else "-"
        digest.update(f"{path}\0{kind}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:16]


def inputs(checkout: Path) -> Iterable[str]:
    """Paths of the files that count: tracked or new, but not ignored."""
    argv = ["git", "-c", "safe.directory=*", "-C", str(checkout), "ls-files", "-z"]
    argv += ["--cached", "--others", "--exclude-standard", "--", *INPUTS]
    try:
        result = subprocess.run(argv, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise LabError(f"the key of a tree needs git and a clone of it: {error}") from error
    return (path for path in result.stdout.split("\0") if path and not _DOCUMENT.search(path))


def _bases() -> list[str]:
    return [bases.base_name(suite) for suite in SUITES]


def _images() -> dict[str, str]:
    """The digests that this machine's hosts pull; none before the images were built."""
    try:
        records = json.loads((CACHE / "images.json").read_text())
    except FileNotFoundError:
        return {}
    return {name: record["digest"] for name, record in records.items()}

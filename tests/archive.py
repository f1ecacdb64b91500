"""The collection's archive, made of this tree and used from elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def run(program: str, *arguments: str | Path, **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [Path(sys.executable).with_name(program), *arguments],
        capture_output=True,
        text=True,
        **more,
    )


def build(directory: Path, tree: Path = ROOT) -> Path:
    """What `ansible-galaxy collection build` makes of a tree."""
    done = run("ansible-galaxy", "collection", "build", "--output-path", directory, tree)
    assert done.returncode == 0, done.stderr
    (path,) = directory.glob("prime_spark-fleet-*.tar.gz")
    return path


def install(archive: Path, directory: Path) -> None:
    """Install an archive with no server to ask."""
    options = ("--offline", "--no-deps", "--collections-path", directory)
    # From elsewhere: here ansible.cfg names the checkout, where it is installed already.
    done = run("ansible-galaxy", "collection", "install", archive, *options, cwd=directory)
    assert done.returncode == 0, done.stderr


def play(directory: Path, collections: Path, *arguments: str | Path) -> tuple[int, str]:
    """Exit status and output of ansible-playbook in a directory, with no settings of ours."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
    done = run(
        "ansible-playbook",
        *arguments,
        cwd=directory,
        env={**kept, "ANSIBLE_NOCOLOR": "1", "ANSIBLE_COLLECTIONS_PATH": str(collections)},
        # Ends what hangs; a busy machine takes minutes.
        timeout=600,
    )
    return done.returncode, f"{done.stdout}{done.stderr}"

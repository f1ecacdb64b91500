"""The hook of the lab: the repository that it plays, and what it knows of its runs."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.system.fleet import fleet
from tests.system.fleet.fleet import LAB, connect, members, shell

(HOST,) = members("hook")
USER = "prime-spark-hook"
# Where the lab's inventory says that the repository is.
REPOSITORY = "/srv/prime-spark/fleet.git"
# What a run reads of the lab's directory; the same path inside.
NEEDED = ("ssh/id_ed25519", "ssh/known_hosts", "secrets", "cache/images.json")
RUN_SECONDS = 400


def git(tree: Path, *arguments: str) -> str:
    who = ["-c", "user.name=lab", "-c", "user.email=lab@example.org"]
    command = ["git", *who, "-C", str(tree), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def committed(tree: Path, settings: str) -> str:
    """Commit the checkout with further settings of the inventory; return the commit.

    What the lab keeps beside it, vault and images, is in the commit as well.
    """
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=fleet.ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    own = [f"inventories/lab/group_vars/all/{name}" for name in ("vault.yml", "images.yml")]
    for name in filter(None, listed.split("\0")):
        if (fleet.ROOT / name).exists() or (fleet.ROOT / name).is_symlink():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(fleet.ROOT / name, tree / name, follow_symlinks=False)
    for name in own:
        shutil.copy(fleet.ROOT / name, tree / name)
    with (tree / "inventories/lab/group_vars/all/main.yml").open("a") as stream:
        stream.write(settings)
    git(tree, "init", "--quiet", "--initial-branch=main")
    git(tree, "add", "--force", "--", *own)
    git(tree, "add", ".")
    git(tree, "commit", "--quiet", "--message", "Change settings")
    return git(tree, "rev-parse", "HEAD")


@contextmanager
def repository(tree: Path, settings: str) -> Iterator[str]:
    """Give the hook a repository with further settings; yield the commit."""
    try:
        made = committed(tree, settings)
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            archive.add(tree / ".git", REPOSITORY.lstrip("/"))
            for name in NEEDED:
                archive.add(LAB / name, str(LAB / name).lstrip("/"))
        argv = ["ssh", "-F", str(LAB / "ssh" / "config"), f"root@{HOST}"]
        argv += ["tar --extract --directory / --no-same-owner"]
        subprocess.run(argv, input=buffer.getvalue(), check=True, timeout=120)
        script = 'git -C "$1" config core.bare true; chown -R "$3:" "$1" "$2"'
        shell(connect(HOST), script, REPOSITORY, str(LAB), USER)
        yield made
    finally:
        shell(connect(HOST), 'rm -rf "$1" "$2"', REPOSITORY, str(LAB))


def play(*arguments: str) -> None:
    """Run site.yml from the checkout."""
    command = [fleet.BIN / "ansible-playbook", "site.yml", *arguments]
    subprocess.run(command, cwd=fleet.ROOT, check=True, timeout=600)


def runs() -> list[dict[str, Any]]:
    """The newest runs, as the hook's command lists them."""
    return list(json.loads(shell(connect(HOST), "prime-spark-hook runs list --json")))


def state(run: int) -> dict[str, Any]:
    """What the hook knows of a run."""
    return dict(
        json.loads(shell(connect(HOST), 'prime-spark-hook runs show --json "$1"', str(run)))
    )


def ended(run: int) -> dict[str, Any]:
    """The run, once it has ended."""
    return dict(
        fleet.wait_until(
            f"run {run} ends", lambda: state(run), RUN_SECONDS, lambda found: found["ended"]
        )
    )

"""What a failed, a killed or a second run needs: the way back, and one run at a time.

Shared by the modules ``config_tree`` and ``compose_project``.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import os
from contextlib import AbstractContextManager
from typing import Any

from ansible_collections.prime_spark.fleet.plugins.module_utils.atomic import (
    replace_file,
    replace_link,
)
from ansible_collections.prime_spark.fleet.plugins.module_utils.lock import exclusive
from ansible_collections.prime_spark.fleet.plugins.module_utils.tree import (
    Difference,
    Tree,
    TreeError,
    read,
)

LOCK_DIR = "/run/prime-spark/locks"
# Longer than anything that a run does to one tree: the slowest start plus its way back.
LOCK_SECONDS = 600


def locked(
    name: str, seconds: float = LOCK_SECONDS, directory: str = LOCK_DIR
) -> AbstractContextManager[None]:
    """Let one run at a time work on a tree.

    What a killed ansible-playbook started goes on on the host for a while; the next run waits for
    it here instead of writing and restarting in between.
    """
    os.makedirs(directory, mode=0o700, exist_ok=True)
    return exclusive(
        os.path.join(directory, f"{name}.lock"),
        seconds,
        busy=lambda holder: TreeError(
            f"another run is still at work on {name} (process {holder} on this host), "
            f"waited {seconds:.0f} s for it. Run again when it has ended"
        ),
    )


@dataclasses.dataclass
class Snapshot:
    """What the host had before a tree was applied: file contents by path, and link targets.

    Kept on disk, readable by root alone, from the first write until the new state is healthy or the
    old one is back. It thus outlives a run that is killed, and the next run can still go back to
    the last state that worked.
    """

    files: dict[str, dict[str, Any] | None] = dataclasses.field(default_factory=dict)
    links: dict[str, str | None] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, paths: list[str], links: list[str]) -> Snapshot:
        """Read the given paths as they are now."""
        before = cls()
        for path in paths:
            if os.path.isdir(path) and not os.path.islink(path):
                continue
            content = None if os.path.islink(path) else read(path)
            if content is None:
                before.files[path] = None
                continue
            status = os.stat(path)
            before.files[path] = {
                "content": base64.b64encode(content).decode(),
                "mode": status.st_mode & 0o7777,
                "uid": status.st_uid,
                "gid": status.st_gid,
            }
        for path in links:
            before.links[path] = os.readlink(path) if os.path.islink(path) else None
        return before

    def restore(self) -> None:
        """Put everything back; a file that was not there goes, so that none is left over."""
        for path, old in self.files.items():
            if old is None:
                if os.path.isfile(path) or os.path.islink(path):
                    os.unlink(path)
                continue
            os.makedirs(os.path.dirname(path), exist_ok=True)
            content = base64.b64decode(old["content"])
            replace_file(path, content, old["mode"], (old["uid"], old["gid"]))
        for path, target in self.links.items():
            if target is not None:
                replace_link(path, target)


def saved_rollback(tree: Tree) -> Snapshot | None:
    """What a run that did not end saved."""
    raw = read(tree.rollback_path)
    try:
        return Snapshot(**json.loads(raw)) if raw else None
    except (ValueError, TypeError):
        return None


def save_rollback(tree: Tree, found: Difference, links: list[str]) -> Snapshot | None:
    """Save what is about to be overwritten; None where nothing ever worked.

    What a killed run saved is older, and therefore wins.
    """
    if not tree.record.get("applied"):
        return None
    paths = [file.path for file in [*found.write, *found.attributes]] + found.remove
    before = Snapshot.of(paths, links)
    if (older := saved_rollback(tree)) is not None:
        before.files.update(older.files)
        before.links.update(older.links)
    os.makedirs(os.path.dirname(tree.rollback_path), exist_ok=True)
    replace_file(tree.rollback_path, json.dumps(dataclasses.asdict(before)))
    return before


def discard_rollback(tree: Tree) -> None:
    """The new state is healthy, or the old one is back: nothing is left to go back to."""
    if os.path.exists(tree.rollback_path):
        os.unlink(tree.rollback_path)

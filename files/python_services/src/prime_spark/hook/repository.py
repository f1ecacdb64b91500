"""The repository of the playbooks: what its refs point to, and a worktree at exactly a commit.

A bare mirror in the state directory holds the allowed refs and nothing else. Of commits only those
are played that an allowed ref contains.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Collection
from pathlib import Path

from prime_spark.hook.settings import RepositoryConfig

_COMMIT = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")
_USERINFO = re.compile(r"(://)[^/\s]*@")
_REASON_CHARS = 300


def revision_of(checkout: str) -> str:
    """Return what names the files of a checkout: its commit, and a hash of what differs from that.

    Empty where Git does not know it.
    """
    seen = []
    for arguments in (
        ("rev-parse", "HEAD"),
        ("status", "--porcelain", "--untracked-files=all"),
        ("diff", "--no-ext-diff", "--binary", "HEAD"),
    ):
        # It is played, so it is trusted, whoever owns it.
        command = ["git", "--no-optional-locks", "-c", "safe.directory=*", "-C", checkout]
        try:
            done = subprocess.run([*command, *arguments], capture_output=True, check=True)  # noqa: S603
        except (OSError, subprocess.CalledProcessError):
            return ""
        seen.append(done.stdout)
    head = seen[0].decode().strip()
    changed = b"".join(seen[1:])
    return f"{head}+{hashlib.sha256(changed).hexdigest()[:16]}" if changed else head


class GitError(Exception):
    """Git did not do what was asked; the message says why."""


class Repository:
    """The mirror and the worktrees below `state`. Only one thread makes and removes worktrees.

    `beat` is called before each command of Git.
    """

    def __init__(
        self, config: RepositoryConfig, state: Path, beat: Callable[[], None] = lambda: None
    ) -> None:
        self._config = config
        self._beat = beat
        self._mirror = state / "mirror.git"
        self._worktrees = state / "worktrees"

    def heads(self) -> dict[str, str]:
        """Return the commit that each allowed ref points to at the origin."""
        listed = self._git("ls-remote", "--refs", "--", self._config.url, *self._config.refs)
        pairs = (line.split("\t", 1) for line in listed.splitlines())
        # A pattern of ls-remote matches the end of a ref, too.
        found = {ref: commit for commit, ref in pairs}
        return {ref: found[ref] for ref in self._config.refs if ref in found}

    def path(self, name: str) -> Path:
        """Return where the worktree of that name is, or would be."""
        return self._worktrees / name

    def checkout(self, commit: str, name: str) -> Path:
        """Return a new worktree at `commit`; raises GitError, also when no allowed ref contains it.

        One of that name that is there goes: nobody knows what was done in it.
        """
        if not _COMMIT.fullmatch(commit):
            raise GitError("that is no commit")
        # Also when the commit is there already: it may have been taken back.
        self._fetch()
        if not self._contained(commit):
            raise GitError(f"no allowed ref contains {commit}")
        path = self.path(name)
        self._remove(path)
        self._git("worktree", "add", "--detach", "--force", str(path), commit, mirror=True)
        return path

    def keep_only(self, names: Collection[str]) -> None:
        """Remove the other worktrees."""
        if not self._worktrees.exists():
            return
        for path in self._worktrees.iterdir():
            if path.name not in names:
                self._remove(path)

    def _remove(self, path: Path) -> None:
        shutil.rmtree(path, ignore_errors=True)
        self._git("worktree", "prune", mirror=True)

    def _contained(self, commit: str) -> bool:
        for ref in self._config.refs:
            with contextlib.suppress(GitError):
                self._git("merge-base", "--is-ancestor", commit, ref, mirror=True)
                return True
        return False

    def _fetch(self) -> None:
        if not (self._mirror / "HEAD").exists():
            self._git("init", "--quiet", "--bare", str(self._mirror))
        self._worktrees.mkdir(mode=0o700, exist_ok=True)
        heads = self.heads()
        # What is no longer allowed, or gone at the origin, contains nothing any more.
        for ref in self._git("for-each-ref", "--format=%(refname)", mirror=True).split():
            if ref not in heads:
                self._git("update-ref", "-d", ref, mirror=True)
        wanted = [f"+{ref}:{ref}" for ref in heads]
        if wanted:
            self._git("fetch", "--quiet", "--no-tags", "--", self._config.url, *wanted, mirror=True)

    def _git(self, *arguments: str, mirror: bool = False) -> str:
        command = ["git", "-c", "core.hooksPath=/dev/null", "-c", "protocol.ext.allow=never"]
        command += ["-c", "gc.autoDetach=false"]
        command += ["--git-dir", str(self._mirror)] if mirror else []
        self._beat()
        try:
            done = subprocess.run(  # noqa: S603
                [*command, *arguments],
                cwd="/",
                env={
                    "PATH": os.environ.get("PATH", os.defpath),
                    "HOME": str(self._mirror.parent),
                    "LANG": "C.UTF-8",
                    "GIT_CONFIG_NOSYSTEM": "1",
                    "GIT_TERMINAL_PROMPT": "0",
                    **self._config.environment,
                },
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=self._config.timeout_seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            # The exception's own text has the whole command.
            seconds = self._config.timeout_seconds
            raise GitError(f"git {arguments[0]}: no answer within {seconds:g} s") from None
        except OSError as error:
            raise GitError(f"git {arguments[0]}: {error}") from None
        if done.returncode != 0:
            # Git may have a token from a helper, or from another setting.
            text = _USERINFO.sub(r"\1***@", " ".join(done.stderr.split()))[-_REASON_CHARS:]
            raise GitError(f"git {arguments[0]} ended with {done.returncode}: {text}")
        return done.stdout

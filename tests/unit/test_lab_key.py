"""The key of a converged fleet follows everything that leads to one, and nothing else."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from lab import key
from lab.common import CHECKOUT

# Written out here a second time: what is no part of a fleet's way to its state.
OUTSIDE = (
    ".ci/",
    ".github/",
    "docs/",
    "files/python_services/lock.py",
    "files/python_services/tests/",
    "inventories/one-host/",
    "inventories/production/",
    "inventories/vpn-nas/",
    "molecule/",
    "tests/",
    "tools/",
)
OUTSIDE_FILES = {
    ".ansible-lint",
    ".editorconfig",
    ".gitignore",
    ".pre-commit-config.yaml",
    ".yamllint",
    "LICENSE",
    "Makefile",
    "galaxy.yml",
    "properdocs.yml",
    "pyproject.toml",
}
TOOLS_OF_A_RUN = {
    "tools/bootstrap",
    "tools/make_secrets.py",
    "tools/vault.py",
    "tools/vault-encrypts",
    "tools/vault-password-lab",
}


def git(checkout: Path, *arguments: str) -> str:
    command = ["git", "-c", "safe.directory=*", "-C", str(checkout), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def files() -> list[str]:
    """The files of this tree, as git knows them."""
    listed = git(CHECKOUT, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    return sorted({name for name in listed.split("\0") if name and (CHECKOUT / name).exists()})


@pytest.fixture
def tree(files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clone with the same files, on a machine whose bases and images stay the same."""
    monkeypatch.setattr(key, "_bases", lambda: ["trixie-1"])
    monkeypatch.setattr(key, "_images", lambda: {"kafka": "sha256:1"})
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(CHECKOUT / name, tmp_path / name, follow_symlinks=False)
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", "--all")
    return tmp_path


def leads_to_a_fleet(name: str) -> bool:
    if name.endswith(".md") or name in OUTSIDE_FILES:
        return False
    return name in TOOLS_OF_A_RUN or not name.startswith(OUTSIDE)


def test_inputs_are_all_files_but_tests_and_documents(files: list[str]) -> None:
    assert sorted(set(key.inputs(CHECKOUT))) == [name for name in files if leads_to_a_fleet(name)]


def test_the_key_follows_every_input(tree: Path) -> None:
    seen = {key.key(tree)}
    # One file of every directory, and every single file beside them.
    chosen = list({os.path.dirname(name) or name: name for name in key.inputs(tree)}.values())
    for name in chosen:
        if (tree / name).is_symlink():
            (tree / name).unlink()
            (tree / name).symlink_to("elsewhere")
        else:
            with (tree / name).open("a") as stream:
                stream.write("\n")
        seen.add(key.key(tree))
    (tree / chosen[0]).chmod(0o777 if not os.access(tree / chosen[0], os.X_OK) else 0o644)
    seen.add(key.key(tree))
    (tree / "roles/common/tasks/new.yml").write_text("---\n")
    seen.add(key.key(tree))
    (tree / "roles/common/tasks/new.yml").rename(tree / "roles/common/tasks/other.yml")
    seen.add(key.key(tree))
    (tree / chosen[-1]).unlink()
    seen.add(key.key(tree))
    assert len(seen) == len(chosen) + 5


def test_the_key_follows_bases_and_images(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {key.key(tree)}
    monkeypatch.setattr(key, "_bases", lambda: ["trixie-2"])
    seen.add(key.key(tree))
    monkeypatch.setattr(key, "_images", lambda: {"kafka": "sha256:2"})
    seen.add(key.key(tree))
    assert len(seen) == 3


def test_the_key_knows_the_digests_of_built_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key, "CACHE", tmp_path)
    assert key._images() == {}
    record = {"reference": "r@sha256:1", "digest": "sha256:1", "recipe": "x"}
    (tmp_path / "images.json").write_text(json.dumps({"kafka": record}))
    assert key._images() == {"kafka": "sha256:1"}


def test_the_key_does_not_follow_tests_documents_and_ignored_files(tree: Path) -> None:
    before = key.key(tree)
    for name in (
        "README.md",
        "lab/README.md",
        "tests/system/lab/conftest.py",
        "docs/performance.md",
    ):
        if (tree / name).is_symlink():
            (tree / name).unlink()
            (tree / name).symlink_to("elsewhere")
        else:
            with (tree / name).open("a") as stream:
                stream.write("\n")
    (tree / "tests/unit/test_new.py").touch()
    (tree / "roles/common/__pycache__").mkdir()
    (tree / "roles/common/__pycache__/x.pyc").touch()
    (tree / "inventories/lab/group_vars/all/images.yml").write_text("images: {}\n")
    assert key.key(tree) == before

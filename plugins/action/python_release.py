"""Action side of ``python_release``: name the release, build it where needed, send it."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

# Part of every release's hash: raise it when the way of building or installing changes.
FORMAT = "1"


class ActionModule(ActionBase):
    """Ask the host, build on the controller only what the host lacks, install."""

    TRANSFERS_FILES = True

    def run(
        self, tmp: str | None = None, task_vars: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        arguments = dict(self._task.args)
        source = self.source_directory()
        asked = self._execute_module(module_args=arguments, task_vars=task_vars)
        if asked.get("failed"):
            return {**result, **asked}
        target = asked["target"]
        lock = os.path.join(source, "locks", f"{target}.txt")
        if not os.path.exists(lock):
            known = sorted(name.removesuffix(".txt") for name in os.listdir(f"{source}/locks"))
            raise AnsibleActionFail(
                f"no lock file for this host's {target}; there are {', '.join(known)}. "
                f"Add the target to {os.path.relpath(source)}/lock.py and run it"
            )
        release = release_hash(source, lock, target)
        root = arguments.get("root", "/opt/prime-spark")
        path = f"{root}/services/{arguments['service']}/releases/{release}"
        if release in asked["installed"]:
            return {**result, "changed": False, "release": release, "path": path, "target": target}
        if self._task.check_mode:
            return {
                **result,
                "changed": True,
                "release": release,
                "path": path,
                "target": target,
                "msg": f"release {release} would be built and installed",
            }
        arguments["release"] = release
        if release not in asked["artifacts"]:
            archive = self.build(source, lock, target, release)
            with open(archive, "rb") as stream:
                arguments["sha256"] = hashlib.file_digest(stream, "sha256").hexdigest()
            self._make_tmp_path()
            remote = self._connection._shell.join_path(
                self._connection._shell.tmpdir, os.path.basename(archive)
            )
            arguments["archive"] = self._transfer_file(archive, remote)
        try:
            result.update(self._execute_module(module_args=arguments, task_vars=task_vars))
        finally:
            self._remove_tmp_path(self._connection._shell.tmpdir)
        return result

    def source_directory(self) -> str:
        """``files/python_services`` of the repository, wherever the playbook lies."""
        directory = self._loader.get_basedir()
        while True:
            candidate = os.path.join(directory, "files", "python_services")
            if os.path.exists(os.path.join(candidate, "pyproject.toml")):
                return candidate
            if directory == os.path.dirname(directory):
                raise AnsibleActionFail(
                    f"no files/python_services above {self._loader.get_basedir()}"
                )
            directory = os.path.dirname(directory)

    def build(self, source: str, lock: str, target: str, release: str) -> str:
        """The release's archive on the controller, built once for all hosts and services."""
        cache = os.path.expanduser(
            os.environ.get("PRIME_SPARK_CACHE", "~/.cache/prime-spark") + "/releases"
        )
        os.makedirs(cache, exist_ok=True)
        archive = os.path.join(cache, f"{release}.tar")
        with exclusive(os.path.join(cache, ".lock")):
            if os.path.exists(archive):
                return archive
            self._display.display(f"building release {release} for {target}: wheel and wheelhouse")
            wheelhouse = fetch_wheelhouse(cache, lock, target)
            work = f"{archive}.work"
            shutil.rmtree(work, ignore_errors=True)
            build_wheel(source, f"{work}/wheel")
            with tarfile.open(f"{archive}.partial", "w") as tar:
                tar.add(f"{work}/wheel", "wheel")
                tar.add(wheelhouse, "wheelhouse")
            shutil.rmtree(work)
            os.rename(f"{archive}.partial", archive)
            forget_old(cache)
        return archive


def release_hash(source: str, lock: str, target: str) -> str:
    """Hash over the format, the target, the lock file and every source file that gets packed."""
    digest = hashlib.sha256(f"{FORMAT}\0{target}\0".encode())
    paths = [os.path.join(source, "pyproject.toml"), lock]
    for root, names, leaves in os.walk(os.path.join(source, "src")):
        names[:] = sorted(name for name in names if name != "__pycache__")
        paths += [os.path.join(root, leaf) for leaf in sorted(leaves) if not leaf.endswith(".pyc")]
    for path in paths:
        with open(path, "rb") as stream:
            content = stream.read()
        digest.update(f"{os.path.relpath(path, source)}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:16]


@contextmanager
def exclusive(path: str) -> Iterator[None]:
    """Hosts are handled by parallel processes: one of them builds, the others wait."""
    with open(path, "w", encoding="ascii") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def run(argv: list[str], what: str) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip()[-2000:]
        raise AnsibleActionFail(f"{what} failed on the controller: {said}")


def fetch_wheelhouse(cache: str, lock: str, target: str) -> str:
    """Download the locked wheels for the target, hash-checked; cached by the lock's content."""
    with open(lock, "rb") as stream:
        name = hashlib.file_digest(stream, "sha256").hexdigest()[:16]
    wheelhouse = os.path.join(os.path.dirname(cache), "wheelhouses", f"{target}-{name}")
    if os.path.isdir(wheelhouse):
        return wheelhouse
    machine, _, python = target.partition("-py")
    partial = f"{wheelhouse}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    platforms = [
        f"{name}_{machine}" for name in ("manylinux_2_28", "manylinux_2_17", "manylinux2014")
    ]
    argv = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    argv += ["--no-deps", "--only-binary", ":all:", "--require-hashes", "--dest", partial]
    argv += ["--implementation", "cp", "--python-version", f"{python[0]}.{python[1:]}"]
    for abi in (f"cp{python}", "abi3", "none"):
        argv += ["--abi", abi]
    for platform in platforms:
        argv += ["--platform", platform]
    run([*argv, "--requirement", lock], f"downloading the wheels for {target}")
    os.rename(partial, wheelhouse)
    return wheelhouse


def build_wheel(source: str, directory: str) -> None:
    # Built from a copy: the build writes beside the sources otherwise.
    copy = f"{directory}.source"
    shutil.rmtree(copy, ignore_errors=True)
    ignored = shutil.ignore_patterns("__pycache__", "tests", "locks", ".*", "build", "*.egg-info")
    shutil.copytree(source, copy, ignore=ignored)
    argv = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check"]
    argv += ["--no-deps", "--no-build-isolation", "--wheel-dir", directory, copy]
    run(argv, "building the wheel of files/python_services")
    shutil.rmtree(copy)


def forget_old(cache: str, keep: int = 12) -> None:
    """Keep the newest archives; an older one is built again when it is wanted again."""
    archives = [os.path.join(cache, name) for name in os.listdir(cache) if name.endswith(".tar")]
    for path in sorted(archives, key=os.path.getmtime, reverse=True)[keep:]:
        os.unlink(path)

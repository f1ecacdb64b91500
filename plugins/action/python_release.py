"""Action side of ``python_release``: name the release, build it where needed, send it."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
import tarfile
import tempfile
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible_collections.prime_spark.fleet.plugins.module_utils.lock import exclusive
from ansible_collections.prime_spark.fleet.plugins.module_utils.process import finish, said
from ansible_collections.prime_spark.fleet.plugins.plugin_utils.catalogue import ROOT

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
        source = str(ROOT / "files" / "python_services")
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
        installed = release in asked["installed"]
        if installed and (release == asked["current"] or self._task.check_mode):
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
        if not installed and release not in asked["artifacts"]:
            archive = self.build(source, lock, target, release)
            arguments["sha256"] = checked_digest(archive)
            self._make_tmp_path()
            remote = self._connection._shell.join_path(
                self._connection._shell.tmpdir, os.path.basename(archive)
            )
            arguments["archive"] = self._transfer_file(archive, remote)
        try:
            result.update(self._execute_module(module_args=arguments, task_vars=task_vars))
        finally:
            if "archive" in arguments:
                self._remove_tmp_path(self._connection._shell.tmpdir)
        return result

    def build(self, source: str, lock: str, target: str, release: str) -> str:
        """The release's archive on the controller, built once for all hosts and services."""
        cache = os.path.expanduser(
            os.environ.get("PRIME_SPARK_CACHE", "~/.cache/prime-spark") + "/releases"
        )
        os.makedirs(cache, exist_ok=True)
        archive = os.path.join(cache, f"{release}.tar")
        # Hosts are handled by parallel processes: one of them builds, the others wait.
        with exclusive(os.path.join(cache, ".lock")):
            if os.path.exists(archive):
                return archive
            self._display.display(f"building release {release} for {target}: wheel and wheelhouse")
            wheelhouse = fetch_wheelhouse(cache, lock, target)
            check_wheelhouse(wheelhouse, lock)
            work = f"{archive}.work"
            shutil.rmtree(work, ignore_errors=True)
            build_wheel(source, f"{work}/wheel")
            with tarfile.open(f"{archive}.partial", "w") as tar:
                tar.add(f"{work}/wheel", "wheel")
                tar.add(wheelhouse, "wheelhouse")
            shutil.rmtree(work)
            with open(f"{archive}.sha256", "w", encoding="ascii") as stream:
                stream.write(file_digest(f"{archive}.partial"))
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


def run(argv: list[str], what: str) -> None:
    done = finish(argv)
    if done.returncode != 0:
        why = said(done)
        if len(why) > 2000:
            why = f"{why[:1000]}\n...\n{why[-1000:]}"
        raise AnsibleActionFail(f"{what} failed on the controller: {why}")


def file_digest(path: str) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def checked_digest(archive: str) -> str:
    """The digest of a cached archive, which has to be what it was when the archive was made."""
    digest = file_digest(archive)
    try:
        with open(f"{archive}.sha256", encoding="ascii") as stream:
            noted = stream.read().strip()
    except FileNotFoundError:
        noted = "none noted"
    if digest != noted:
        raise AnsibleActionFail(
            f"{archive} changed since it was made: expected sha256 {noted}, got {digest}. "
            "Remove it, the next run makes it again"
        )
    return digest


def check_wheelhouse(wheelhouse: str, lock: str) -> None:
    """Refuse a cached wheel that is not, byte for byte, one that the lock names."""
    with open(lock, encoding="utf-8") as stream:
        locked = set(re.findall(r"--hash=sha256:([0-9a-f]{64})", stream.read()))
    for name in sorted(os.listdir(wheelhouse)):
        digest = file_digest(os.path.join(wheelhouse, name))
        if digest not in locked:
            raise AnsibleActionFail(
                f"{wheelhouse}/{name} is not what {os.path.relpath(lock)} says: its sha256 "
                f"{digest} is not in there. Remove {wheelhouse}, the next run downloads it again"
            )


def fetch_wheelhouse(cache: str, lock: str, target: str) -> str:
    """Download the locked wheels for the target, hash-checked; cached by the lock's content."""
    with open(lock, "rb") as stream:
        name = hashlib.file_digest(stream, "sha256").hexdigest()[:16]
    wheelhouse = os.path.join(os.path.dirname(cache), "wheelhouses", f"{target}-{name}")
    if os.path.isdir(wheelhouse):
        return wheelhouse
    machine, _, python = target.partition("-py")
    os.makedirs(os.path.dirname(wheelhouse), exist_ok=True)
    partial = tempfile.mkdtemp(".partial", f"{target}-", os.path.dirname(wheelhouse))
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
    try:
        run([*argv, "--requirement", lock], f"downloading the wheels for {target}")
        os.rename(partial, wheelhouse)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        # Another run on this controller may have been faster.
        if not os.path.isdir(wheelhouse):
            raise
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
    """Keep the newest archives and wheelhouses; an older one is made again when it is wanted."""
    wheelhouses = os.path.join(os.path.dirname(cache), "wheelhouses")
    archives = [os.path.join(cache, name) for name in os.listdir(cache) if name.endswith(".tar")]
    for path in sorted(archives, key=os.path.getmtime, reverse=True)[keep:]:
        os.unlink(path)
        if os.path.exists(f"{path}.sha256"):
            os.unlink(f"{path}.sha256")
    # A partial one may be another run's; that of a killed run goes when it is old.
    houses = [os.path.join(wheelhouses, name) for name in os.listdir(wheelhouses)]
    for path in sorted(houses, key=os.path.getmtime, reverse=True)[keep:]:
        shutil.rmtree(path)
    # What builds that were killed have left; the caller holds the lock, so none is under way.
    for name in os.listdir(cache):
        if name.endswith(".work"):
            shutil.rmtree(os.path.join(cache, name))
        elif name.endswith(".partial"):
            os.unlink(os.path.join(cache, name))

#!/usr/bin/python
"""Ansible module: a content-addressed release of the Python services on a host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: python_release
short_description: Install one service's release offline into a virtual environment of its own
description:
  - A release is named by a hash over the source tree, the lock file and the target, which the
    action plugin knows without building. A host that has it already costs one short remote run.
  - Otherwise the controller builds the wheel and the hash-locked wheelhouse for the host's
    architecture and Python (once, cached), sends them as one archive, and the host installs from it
    without any network.
  - The C(current) link is not touched here; M(config_tree) switches it together with the service's
    configuration and switches back when the health gate fails.
  - A release is complete when its marker is there, the last file that is written. What an
    interrupted or failed run left is removed, and two runs on one host wait for each other.
options:
  service:
    description: Name of the service; its releases live in C(root)/services/<service>/releases.
    type: str
    required: true
  extra:
    description: Extra of the distribution that the service needs.
    type: str
    required: true
  root:
    description: Directory of artifacts and services.
    type: path
    default: /opt/prime-spark
  python:
    description: Interpreter on the host.
    type: path
    default: /usr/bin/python3
  keep:
    description: Number of releases that stay on the host, the newest. The one that C(current)
      points to stays in any case.
    type: int
    default: 3
  target:
    description: What the release is for, C(<machine>-py<XY>); read on the host, do not set.
    type: str
  release:
    description: Hash of the release; set by the action plugin.
    type: str
  archive:
    description: Path of the uploaded archive; set by the action plugin.
    type: path
  sha256:
    description: Digest of the archive; set by the action plugin.
    type: str
"""

RETURN = r"""
release:
  description: Hash of the release.
  type: str
  returned: always
path:
  description: Directory of the release's virtual environment.
  type: str
  returned: always
target:
  description: Architecture and Python of the host.
  type: str
  returned: always
"""

import errno
import glob
import hashlib
import os
import platform
import shutil
import tarfile
import time
from contextlib import AbstractContextManager
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.prime_spark.fleet.plugins.module_utils.lock import exclusive
from ansible_collections.prime_spark.fleet.plugins.module_utils.process import finish, said

ARGUMENTS: dict[str, dict[str, Any]] = {
    "service": {"type": "str", "required": True},
    "extra": {"type": "str", "required": True},
    "root": {"type": "path", "default": "/opt/prime-spark"},
    "python": {"type": "path", "default": "/usr/bin/python3"},
    "keep": {"type": "int", "default": 3},
    "target": {"type": "str"},
    "release": {"type": "str"},
    "archive": {"type": "path"},
    "sha256": {"type": "str"},
}
MARKER = ".complete"
# Longer than an installation takes on a slow SD card.
LOCK_SECONDS = 600
# An upload that is still there after this long belongs to no run any more.
UPLOAD_SECONDS = 3600


class ReleaseError(Exception):
    """The release cannot be installed; the message says why."""


def locked(root: str) -> AbstractContextManager[None]:
    """Let one run at a time install below ``root``."""
    os.makedirs(root, exist_ok=True)
    said = f"another run has been installing below {root} for {LOCK_SECONDS} s. "
    said += "Run again when it has ended"
    return exclusive(root, LOCK_SECONDS, busy=lambda _: ReleaseError(said))


def host_target(python: str) -> str:
    """``x86_64-py313``, say: asked of the interpreter that will run the service."""
    code = "import sys; print('%d%d' % sys.version_info[:2])"
    done = finish([python, "-c", code])
    if done.returncode != 0:
        raise ReleaseError(f"{python} does not run on this host: {done.stderr.strip()}")
    return f"{platform.machine()}-py{done.stdout.strip()}"


def unpack(archive: str, sha256: str, directory: str) -> None:
    """Check the archive and unpack it; the directory appears complete or not at all."""
    with open(archive, "rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != sha256:
        raise ReleaseError(f"the archive arrived damaged: expected sha256 {sha256}, got {digest}")
    partial = f"{directory}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        os.makedirs(partial, mode=0o755)
        with tarfile.open(archive) as tar:
            # Python before 3.11.4 has no filters; the digest above vouches for the content.
            if hasattr(tarfile, "data_filter"):
                tar.extraction_filter = tarfile.data_filter
            tar.extractall(partial)
        os.rename(partial, directory)
    except BaseException:
        # On a full disk what was unpacked is in the way of everything else.
        shutil.rmtree(partial, ignore_errors=True)
        raise


def install(python: str, artifact: str, extra: str, directory: str) -> None:
    """Make the virtual environment in its final place; the marker is its last file."""
    shutil.rmtree(directory, ignore_errors=True)
    wheels = glob.glob(f"{artifact}/wheel/prime_spark-*.whl")
    pips = glob.glob(f"{artifact}/wheelhouse/pip-*.whl")
    if len(wheels) != 1 or len(pips) != 1:
        raise ReleaseError(f"{artifact} does not hold exactly one wheel and one pip")
    steps = [
        [python, "-m", "venv", "--without-pip", directory],
        # pip runs from its wheel: Debian's ensurepip is a package of its own, and a service's
        # environment needs no pip.
        [f"{directory}/bin/python", f"{pips[0]}/pip", "install", "--quiet", "--no-index"]
        + ["--disable-pip-version-check", "--no-cache-dir", "--only-binary", ":all:"]
        + ["--find-links", f"{artifact}/wheelhouse", f"{wheels[0]}[{extra}]"],
    ]
    environment = {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "PIP_ROOT_USER_ACTION": "ignore"}
    try:
        os.makedirs(os.path.dirname(directory), exist_ok=True)
        for argv in steps:
            done = finish(argv, env=environment)
            if done.returncode != 0:
                if os.strerror(errno.ENOSPC) in said(done):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), directory)
                raise ReleaseError(f"`{' '.join(argv)}` failed: {said(done)}")
        # The marker vouches for the files before it, also when the host loses power now.
        os.sync()
        mark(directory)
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise


def mark(directory: str) -> None:
    """Say that a release is complete, and that it is the newest."""
    with open(os.path.join(directory, MARKER), "w", encoding="ascii") as stream:
        stream.write("\n")


def prune(releases: str, keep: int, spared: set[str]) -> list[str]:
    """Remove the oldest complete releases beyond ``keep``, and every incomplete one."""
    known = [
        os.path.join(releases, name)
        for name in (os.listdir(releases) if os.path.isdir(releases) else [])
    ]
    complete = [path for path in known if os.path.exists(os.path.join(path, MARKER))]
    complete.sort(key=lambda path: os.stat(os.path.join(path, MARKER)).st_mtime_ns, reverse=True)
    kept = {*complete[:keep], *(path for path in complete if path in spared)}
    removed = [path for path in known if path not in kept]
    for path in removed:
        shutil.rmtree(path)
    return removed


def forget_uploads(archive: str) -> None:
    """Remove archives of runs that were killed before Ansible could clean up after them."""
    own = os.path.dirname(archive)
    pattern = os.path.join(os.path.dirname(own), "ansible-tmp-*", "[0-9a-f]" * 16 + ".tar")
    for path in glob.glob(pattern):
        directory = os.path.dirname(path)
        if directory != own and time.time() - os.stat(path).st_mtime > UPLOAD_SECONDS:
            shutil.rmtree(directory, ignore_errors=True)


def describe(error: Exception, root: str) -> str:
    """One sentence; of a full disk, what to do about it."""
    if not isinstance(error, OSError) or error.errno != errno.ENOSPC:
        return str(error)
    free = shutil.disk_usage(root).free // 2**20
    return (
        f"no space left on the disk of {error.filename or root} ({free} MiB free at {root}, where "
        "the unfinished release was removed again). Nothing was switched, the release before stays "
        "in use. Make room and run again"
    )


def main() -> None:
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    params = module.params
    root, release = params["root"], params["release"]
    home = os.path.join(root, "services", params["service"])
    try:
        target = host_target(params["python"])
        result: dict[str, Any] = {"changed": False, "target": target, "release": release}
        if not release:
            # The action plugin asks for the target before it can name the release.
            releases = os.path.join(home, "releases")
            result["installed"] = [
                name
                for name in (os.listdir(releases) if os.path.isdir(releases) else [])
                if os.path.exists(os.path.join(releases, name, MARKER))
            ]
            artifacts = os.path.join(root, "artifacts")
            result["artifacts"] = os.listdir(artifacts) if os.path.isdir(artifacts) else []
            result["current"] = os.path.basename(os.path.realpath(os.path.join(home, "current")))
            module.exit_json(**result)
        with locked(root):
            changed, path = ensure(params, home)
        result.update(changed=changed, path=path)
    except (ReleaseError, OSError, tarfile.TarError) as error:
        module.fail_json(msg=f"release of {params['service']}: {describe(error, root)}")
    module.exit_json(**result)


def ensure(params: dict[str, Any], home: str) -> tuple[bool, str]:
    """Install the release if it is not there, then remove what is old or unfinished."""
    releases = os.path.join(home, "releases")
    directory = os.path.join(releases, params["release"])
    artifacts = os.path.join(params["root"], "artifacts")
    artifact = os.path.join(artifacts, params["release"])
    changed = False
    if params["archive"]:
        forget_uploads(params["archive"])
    if os.path.exists(os.path.join(directory, MARKER)):
        # Back to a release from before: from now on it is the newest.
        mark(directory)
    else:
        if params["archive"] and not os.path.isdir(artifact):
            unpack(params["archive"], params["sha256"], artifact)
        install(params["python"], artifact, params["extra"], directory)
        changed = True
    prune(releases, params["keep"], {directory, os.path.realpath(os.path.join(home, "current"))})
    # Archives serve the services of one run; the environments stand on their own.
    for name in os.listdir(artifacts) if os.path.isdir(artifacts) else []:
        if name != params["release"]:
            shutil.rmtree(os.path.join(artifacts, name))
    return changed, directory


if __name__ == "__main__":
    main()

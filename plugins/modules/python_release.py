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
    description: Number of releases that stay on the host.
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

import glob
import hashlib
import os
import platform
import shutil
import subprocess
import tarfile
from typing import Any

from ansible.module_utils.basic import AnsibleModule

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


class ReleaseError(Exception):
    """The release cannot be installed; the message says why."""


def host_target(python: str) -> str:
    """``x86_64-py313``, say: asked of the interpreter that will run the service."""
    code = "import sys; print('%d%d' % sys.version_info[:2])"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
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
    os.makedirs(partial, mode=0o755)
    with tarfile.open(archive) as tar:
        # Python before 3.11.4 has no filters; the digest above vouches for the content.
        if hasattr(tarfile, "data_filter"):
            tar.extraction_filter = tarfile.data_filter
        tar.extractall(partial)
    os.rename(partial, directory)


def install(python: str, artifact: str, extra: str, directory: str) -> None:
    """Make the virtual environment in its final place; the marker is its last file."""
    shutil.rmtree(directory, ignore_errors=True)
    os.makedirs(os.path.dirname(directory), exist_ok=True)
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
    for argv in steps:
        done = subprocess.run(argv, capture_output=True, text=True, check=False, env=environment)
        if done.returncode != 0:
            raise ReleaseError(f"`{' '.join(argv)}` failed: {(done.stderr or done.stdout).strip()}")
    with open(os.path.join(directory, MARKER), "w", encoding="ascii") as stream:
        stream.write("\n")


def prune(releases: str, keep: int, spared: set[str]) -> list[str]:
    """Remove the oldest complete releases beyond ``keep``, and every incomplete one."""
    known = [
        os.path.join(releases, name)
        for name in (os.listdir(releases) if os.path.isdir(releases) else [])
    ]
    known.sort(key=lambda path: os.stat(path).st_mtime, reverse=True)
    kept = [path for path in known if os.path.exists(os.path.join(path, MARKER))][:keep]
    removed = [path for path in known if path not in kept and path not in spared]
    for path in removed:
        shutil.rmtree(path)
    return removed


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
            module.exit_json(**result)
        directory = os.path.join(home, "releases", release)
        artifact = os.path.join(root, "artifacts", release)
        result["path"] = directory
        if params["archive"] and not os.path.isdir(artifact):
            unpack(params["archive"], params["sha256"], artifact)
            result["changed"] = True
        if not os.path.exists(os.path.join(directory, MARKER)):
            install(params["python"], artifact, params["extra"], directory)
            result["changed"] = True
        current = os.path.realpath(os.path.join(home, "current"))
        prune(os.path.join(home, "releases"), params["keep"], {directory, current})
        # Archives serve the services of one run; the environments stand on their own.
        for name in os.listdir(os.path.dirname(artifact)):
            if name != release:
                shutil.rmtree(os.path.join(os.path.dirname(artifact), name))
    except (ReleaseError, OSError) as error:
        module.fail_json(msg=f"release of {params['service']}: {error}")
    module.exit_json(**result)


if __name__ == "__main__":
    main()

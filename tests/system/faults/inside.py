"""A controller on a host of the fleet itself, as an owner runs it on the PC at home.

It has its own checkout, Ansible, SSH key and known hosts, and the routes of its host. To itself it
speaks with ``ansible_connection: local``.
"""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
from pathlib import Path

from tests.system.fleet import fleet
from tests.system.fleet.fleet import LAB, connect, shell

HOST = "control-pc-1"
HOME = "/opt/controller"
# What runs read of the lab's directory; the same path inside.
NEEDED = ("ssh/id_ed25519", "ssh/known_hosts", "secrets", "cache/images.json")


def _locked(name: str) -> str:
    """``name==version`` of the controller's lock."""
    lock = (fleet.ROOT / "requirements" / "dev.txt").read_text().splitlines()
    (line,) = [line for line in lock if line.startswith(f"{name}==")]
    return line.split()[0]


def _packages(directory: Path) -> None:
    """Ansible and what it needs, of the locked versions, for the Python of the host."""
    ask = "import sys; print('%d.%d' % sys.version_info[:2])"
    python = shell(connect(HOST), 'python3 -c "$1"', ask)
    argv = [str(fleet.BIN / "uv"), "pip", "install", "--quiet", "--only-binary", ":all:"]
    argv += ["--target", str(directory), "--python-version", python.strip()]
    argv += ["--constraint", str(fleet.ROOT / "requirements" / "dev.txt")]
    argv += [_locked("ansible-core"), _locked("argon2-cffi")]
    subprocess.run(argv, check=True)


def install(scratch: Path) -> None:
    """Put the controller onto the host."""
    packages = scratch / "packages"
    _packages(packages)
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=fleet.ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.add(packages, "opt/controller/packages")
        for name in filter(None, listed.split("\0")):
            if (fleet.ROOT / name).exists():
                archive.add(fleet.ROOT / name, f"opt/controller/checkout/{name}")
        # Not in git: the lab makes its own.
        for name in ("vault.yml", "images.yml"):
            path = f"inventories/lab/group_vars/all/{name}"
            archive.add(fleet.ROOT / path, f"opt/controller/checkout/{path}")
        for name in NEEDED:
            archive.add(LAB / name, str(LAB / name).lstrip("/"))
        own = {"all": {"hosts": {HOST: {"ansible_connection": "local"}}}}
        data = json.dumps(own).encode()
        info = tarfile.TarInfo("opt/controller/inside.json")
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
    argv = ["ssh", "-F", str(LAB / "ssh" / "config"), f"root@{HOST}"]
    argv += ["tar --extract --directory / --no-same-owner"]
    subprocess.run(argv, input=buffer.getvalue(), check=True, timeout=120)


def play(*arguments: str) -> str:
    """A run from inside that has to succeed; returns what it printed."""
    known = f"-o UserKnownHostsFile={LAB}/ssh/known_hosts -o StrictHostKeyChecking=yes"
    words = ["-i", "inventories/lab", "-i", f"{HOME}/inside.json", "site.yml"]
    words += ["-e", json.dumps({"ansible_ssh_common_args": known}), *arguments]
    script = (
        f"cd {HOME}/checkout && exec env PYTHONPATH={HOME}/packages ANSIBLE_NOCOLOR=1 "
        f'PRIME_SPARK_LAB_DIR={LAB} python3 -m ansible playbook "$@" 2>&1'
    )
    return shell(connect(HOST), script, *words, seconds=600)


def remove() -> None:
    """Leave nothing of it on the host."""
    shell(connect(HOST), f"rm -rf {HOME} {LAB} /root/.ansible")

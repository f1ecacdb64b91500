"""The repository as the collection prime_spark.fleet: its archive in somebody else's playbook."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.archive import build, install, play

ROOT = Path(__file__).resolve().parents[2]
OPERATIONS = ROOT / "docs" / "operations.md"
# What every file of the archive lies below, or is.
PARTS = {
    "FILES.json", "MANIFEST.json", "README.md", "files", "meta", "playbooks", "plugins", "roles",
}  # fmt: skip
SERVICES = {"README.md", "dags", "lock.py", "locks", "pyproject.toml", "src"}
VPN = {"wireguard_network": "10.99.0.0/24", "wireguard_psk_seed": "s" * 40}
HOSTS: dict[str, dict[str, Any]] = {
    "hub": {
        "wireguard_role": "hub",
        "wireguard_address": "10.99.0.1",
        "wireguard_endpoint": "192.0.2.1:51820",
    },
    "wrong": {"wireguard_role": "wheel", "wireguard_address": "10.99.0.2"},
}


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("archive"))


def surprises(archive: Path) -> set[str]:
    """Files of an archive that git does not track here."""
    with tarfile.open(archive) as opened:
        names = {member.name for member in opened if not member.isdir()}
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout
    return names - set(listed.splitlines()) - {"FILES.json", "MANIFEST.json"}


def test_the_archive_has_nothing_that_git_does_not_track(archive: Path) -> None:
    assert surprises(archive) == set()


def test_an_archive_of_what_is_committed_has_nothing_else_of_the_checkout(
    tmp_path: Path,
) -> None:
    """galaxy.yml can only name what is left out, so the documents build of what is committed."""
    (command,) = re.findall(r"^    (.*git archive .*)$", OPERATIONS.read_text(), re.MULTILINE)
    checkout = tmp_path / "checkout"
    subprocess.run(["git", "clone", "--quiet", ROOT, checkout], check=True)
    secrets = {"vault-password", "roles/redis/files/password"}
    for name in secrets:
        (checkout / name).parent.mkdir(exist_ok=True)
        (checkout / name).write_text("secret")
    (tmp_path / "whole").mkdir()
    assert surprises(build(tmp_path / "whole", checkout)) == secrets
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    environment["TMPDIR"] = str(tmp_path)
    subprocess.run(
        ["bash", "-c", command],
        cwd=checkout,
        env=environment,
        check=True,
        capture_output=True,
    )
    (made,) = checkout.glob("*.tar.gz")
    assert surprises(made) == set()


def test_the_archive_has_what_roles_use_and_nothing_else(archive: Path) -> None:
    with tarfile.open(archive) as opened:
        names = [Path(name) for name in opened.getnames()]
    assert {path.parts[0] for path in names} == PARTS
    assert {
        path.parts[2] for path in names if len(path.parts) > 2 and path.parts[0] == "files"
    } == (SERVICES)
    listed = subprocess.run(
        ["git", "ls-files", "roles", "plugins", "meta"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    assert {Path(name) for name in listed if (ROOT / name).exists()} <= set(names)
    hidden = [str(path) for path in names if any(part.startswith(".") for part in path.parts)]
    assert hidden == []


def test_a_role_works_in_somebody_elses_playbook(archive: Path, tmp_path: Path) -> None:
    """The VPN of two hosts: one has a wrong input, for the other check mode tells what it does."""
    hosts = {
        "hosts": HOSTS,
        "vars": {
            **VPN,
            "ansible_connection": "local",
            "ansible_python_interpreter": sys.executable,
        },
    }
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump({"wireguard": hosts}))
    vpn = {
        "hosts": "wireguard",
        "gather_facts": True,
        "gather_subset": ["!all", "distribution"],
        "roles": ["prime_spark.fleet.wireguard"],
    }
    (tmp_path / "vpn.yml").write_text(yaml.safe_dump([vpn]))
    install(archive, tmp_path)
    status, said = play(tmp_path, tmp_path, "-i", "hosts.yml", "vpn.yml", "--check")
    assert status == 2, said
    assert "value of wireguard_role must be one of: hub, spoke, got: wheel" in said, said
    assert "changed: [hub]" in said.partition("Configure and run the interface]")[2], said
    assert "failed=1" in said and "failed=0" in said, said

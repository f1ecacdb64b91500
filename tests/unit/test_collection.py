"""The repository as the collection prime_spark.fleet: its archive in somebody else's playbook."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
import textwrap
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.archive import build, install, play

ROOT = Path(__file__).resolve().parents[2]
COLLECTION = ROOT / "docs" / "operations" / "collection.md"
# What every file of the archive lies below, or is.
PARTS = {
    "FILES.json", "LICENSE", "MANIFEST.json", "files", "meta", "playbooks", "plugins", "roles",
}  # fmt: skip
SERVICES = {"README.md", "dags", "lock.py", "locks", "pyproject.toml", "src"}
README = (ROOT / "meta" / "README.md").read_text()


def example(name: str) -> Any:
    """A file that the archive's README shows."""
    (text,) = re.findall(rf"^    # {re.escape(name)}\n((?:    .*\n)+)", README, re.MULTILINE)
    return yaml.safe_load(textwrap.dedent(text))


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
    (command,) = re.findall(r"^    (.*git archive .*)$", COLLECTION.read_text(), re.MULTILINE)
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


def test_the_archive_has_a_readme_and_a_license_of_its_own(archive: Path) -> None:
    with tarfile.open(archive) as opened:
        manifest = json.load(opened.extractfile("MANIFEST.json"))["collection_info"]  # type: ignore[arg-type]
    assert (manifest["readme"], manifest["license"]) == ("meta/README.md", ["Apache-2.0"])
    assert "Copyright 2026 The Prime Spark authors" in (ROOT / "LICENSE").read_text()


def test_the_readme_says_which_roles_need_pip_on_the_controller() -> None:
    (row,) = re.findall(r"^\| (.*) \| `pip`", README, re.MULTILINE)
    needing = {
        path.parts[-3]
        for path in (ROOT / "roles").glob("*/tasks/*.yml")
        if re.search(r"python_(service|release)\b", path.read_text())
    }
    assert re.findall(r"`(\w+)`", row) == sorted(needing)


def test_a_role_works_in_somebody_elses_playbook(archive: Path, tmp_path: Path) -> None:
    """The README's VPN: one host has a wrong input, for the other check mode tells what it does."""
    hosts = example("hosts.yml")
    hosts["wireguard"]["hosts"]["cloud"]["wireguard_role"] = "wheel"
    hosts["wireguard"]["vars"] |= {
        "wireguard_psk_seed": "s" * 40,
        "ansible_connection": "local",
        "ansible_python_interpreter": sys.executable,
    }
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump(hosts))
    (tmp_path / "vpn.yml").write_text(yaml.safe_dump(example("vpn.yml")))
    install(archive, tmp_path)
    status, said = play(tmp_path, tmp_path, "-i", "hosts.yml", "vpn.yml", "--check")
    assert status == 2, said
    assert "value of wireguard_role must be one of: hub, spoke, got: wheel" in said, said
    assert "changed: [home]" in said.partition("Configure and run the interface]")[2], said
    assert "failed=1" in said and "failed=0" in said, said

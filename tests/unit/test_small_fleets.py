"""The inventories of small fleets are fleets: `site.yml` accepts them as they stand."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tools.vault import References

ROOT = Path(__file__).resolve().parents[2]
INVENTORIES = ROOT / "inventories"


@pytest.mark.parametrize("name", ["one-host", "vpn-nas"])
def test_a_small_fleet_is_accepted_once_it_has_secrets(tmp_path: Path, name: str) -> None:
    copy = tmp_path / name
    shutil.copytree(INVENTORIES / name, copy)
    vault = {secret: f"{secret}-{'x' * 24}" for secret in References(copy).required}
    (copy / "group_vars" / "all" / "vault.yml").write_text(yaml.safe_dump(vault))
    done = subprocess.run(
        [
            Path(sys.executable).parent / "ansible-playbook",
            *("--inventory", copy, "site.yml", "--tags", "validate"),
        ],
        cwd=ROOT,
        env={**os.environ, "ANSIBLE_NOCOLOR": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "REFUSED" not in done.stdout


def groups(name: str) -> set[str]:
    """The groups of an inventory that have hosts."""
    tree = yaml.safe_load((INVENTORIES / name / "hosts.yml").read_text())
    return set(tree["all"]["children"])


def test_one_host_has_every_role_of_the_whole_fleet_but_the_nas() -> None:
    assert groups("production") - groups("one-host") == {"cloud", "nas"}

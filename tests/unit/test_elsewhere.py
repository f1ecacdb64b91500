"""The playbooks from another directory, where no ansible.cfg of ours is found."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.unit.test_validate_inventory import inventory, written

ROOT = Path(__file__).resolve().parents[2]
PLAYBOOKS = [ROOT / "site.yml", *sorted((ROOT / "playbooks").glob("*.yml"))]
SETTINGS = ("ANSIBLE_CONFIG", "ANSIBLE_COLLECTIONS_PATH")


def run(
    program: str, *arguments: str | Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    return subprocess.run(
        [Path(sys.executable).with_name(program), *arguments],
        cwd="/",
        env={**kept, "ANSIBLE_NOCOLOR": "1", "HOME": "/nonexistent", **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_every_playbook_loads(tmp_path: Path) -> None:
    arguments, environment, _ = written(tmp_path, inventory())
    environment["ANSIBLE_LOCAL_TEMP"] = str(tmp_path)
    done = run("ansible-playbook", *arguments, "--list-tasks", *PLAYBOOKS, **environment)
    assert done.returncode == 0, done.stderr
    assert "Seal what this run brought up" in done.stdout


def test_an_inventory_is_validated(tmp_path: Path) -> None:
    arguments, environment, contacted = written(tmp_path, inventory())
    environment["ANSIBLE_LOCAL_TEMP"] = str(tmp_path)
    done = run(
        "ansible-playbook", *arguments, ROOT / "site.yml", "--tags", "validate", **environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Check every variable of every host" in done.stdout
    assert not contacted.exists()


@pytest.mark.parametrize("playbook", ["site.yml", "playbooks/verify.yml"])
def test_an_inventory_that_is_not_there_is_refused(tmp_path: Path, playbook: str) -> None:
    """Ansible's own settings let a run on nobody end well."""
    path = ROOT / playbook
    done = run("ansible-playbook", "-i", "/nonexistent", path, ANSIBLE_LOCAL_TEMP=str(tmp_path))
    assert done.returncode == 2, done.stdout + done.stderr
    said = " ".join(f"{done.stdout} {done.stderr}".split())
    assert "the inventory has no managed hosts" in said
    assert "No host was contacted" in said


def test_the_settings_are_found_from_elsewhere_when_they_are_named(tmp_path: Path) -> None:
    password = tmp_path / "password"
    password.write_text("a password")
    password.chmod(0o600)
    done = run(
        "ansible-playbook",
        *("-i", "/nonexistent", ROOT / "site.yml"),
        ANSIBLE_CONFIG=str(ROOT / "ansible.cfg"),
        ANSIBLE_VAULT_IDENTITY_LIST=f"production@{ROOT}/tools/vault-password-production",
        PRIME_SPARK_VAULT_PASSWORD_FILE=str(password),
        ANSIBLE_LOCAL_TEMP=str(tmp_path),
    )
    assert done.returncode != 0
    assert "Completely failed to parse inventory source /nonexistent" in done.stderr


@pytest.mark.parametrize("path", PLAYBOOKS[1:], ids=lambda path: path.stem)
def test_no_play_relies_on_a_setting_to_gather_nothing(path: Path) -> None:
    """Without ansible.cfg every play would ask every host for all of its facts."""
    plays = [play for play in yaml.safe_load(path.read_text()) if "hosts" in play]
    assert [play["name"] for play in plays if play.get("gather_facts") is not False] == []


@pytest.mark.parametrize("place", ["/", "/playbooks/"])
def test_a_copy_of_the_lab_s_inventory_finds_the_way_to_the_lab(tmp_path: Path, place: str) -> None:
    tree = tmp_path / "checkout"
    (tree / "playbooks").mkdir(parents=True)
    (tree / "lab" / "bin").mkdir(parents=True)
    shutil.copy(ROOT / "lab" / "bin" / "ssh-proxy", tree / "lab" / "bin")
    copy = tmp_path / "somewhere" / "else" / "lab"
    (copy / "group_vars" / "all").mkdir(parents=True)
    shutil.copy(ROOT / "inventories" / "lab" / "hosts.yml", copy)
    main = ROOT / "inventories" / "lab" / "group_vars" / "all" / "main.yml"
    shutil.copy(main, copy / "group_vars" / "all")
    look = {"ansible.builtin.debug": {"msg": "{{ ansible_ssh_common_args }}"}}
    play = [{"hosts": "primecore4", "gather_facts": False, "tasks": [look]}]
    playbook = Path(f"{tree}{place}look.yml")
    playbook.write_text(yaml.safe_dump(play))
    done = run("ansible-playbook", "-i", copy, playbook, ANSIBLE_LOCAL_TEMP=str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "/lab/bin/ssh-proxy %h %p" in done.stdout
    assert str(tree) in done.stdout

"""make secrets and make rotate: what is made, kept and printed, and what a failure leaves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tools import make_secrets, rotate_secret
from tools.vault import PREVIOUS, REPOSITORY, References, SecretsError, Vault

SECRET = "vault_kafka_telemetry_password"


@pytest.fixture
def inventory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An inventory with the vault id `lab` that lies wholly in a directory of the test."""
    monkeypatch.setenv("PRIME_SPARK_LAB_DIR", str(tmp_path / "state"))
    directory = tmp_path / "lab"
    (directory / "group_vars" / "all").mkdir(parents=True)
    return directory


@pytest.fixture
def made(inventory: Path) -> Vault:
    make_secrets.make(inventory)
    return Vault(inventory)


# --- make secrets ---------------------------------------------------------------------------


def test_every_secret_is_made_once_and_nothing_is_printed(inventory: Path) -> None:
    said = "\n".join(make_secrets.make(inventory))
    vault = Vault(inventory)
    known = vault.read()
    assert set(known) == set(References(inventory).required)
    assert len(set(known.values())) == len(known)
    assert all(len(value) >= 40 and value.isalnum() for value in known.values())
    assert not any(value in said for value in known.values())
    before = vault.path.read_bytes()
    assert make_secrets.make(inventory) == []
    assert vault.path.read_bytes() == before


def test_the_vault_is_encrypted_and_private(made: Vault) -> None:
    assert made.path.read_text().startswith("$ANSIBLE_VAULT;1.2;AES256;lab\n")
    for path in (made.path, made.password_file):
        assert path.stat().st_mode & 0o177 == 0


def test_what_is_missing_is_made_and_the_rest_stays(made: Vault) -> None:
    known = made.read()
    made.write({**{n: v for n, v in known.items() if n != SECRET}, "vault_of_the_owner": "x"})
    make_secrets.make(made.inventory)
    after = made.read()
    assert after[SECRET] != known[SECRET]
    assert {**after, SECRET: ""} == {**known, SECRET: "", "vault_of_the_owner": "x"}


def test_a_lost_password_is_a_clear_refusal(made: Vault) -> None:
    made.password_file.unlink()
    with pytest.raises(SecretsError, match=r"exists, but its password .* does not: put the"):
        make_secrets.make(made.inventory)
    assert not made.password_file.exists()


def test_a_wrong_password_is_a_clear_refusal(made: Vault) -> None:
    made.password_file.write_text("another\n")
    with pytest.raises(SecretsError, match="does not open with the password in"):
        make_secrets.make(made.inventory)


def test_an_unknown_inventory_is_a_clear_refusal(tmp_path: Path) -> None:
    with pytest.raises(SecretsError, match="expected the directory of an inventory"):
        Vault(tmp_path / "nowhere")


def test_an_inventory_of_another_name_opens_with_the_owners_password(
    inventory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRIME_SPARK_VAULT_PASSWORD_FILE", str(tmp_path / "password"))
    other = inventory.rename(tmp_path / "staging")
    make_secrets.make(other)
    (other / "hosts.yml").write_text("all: {hosts: {hub: {}}}")
    answer = subprocess.run(
        [
            *(Path(sys.executable).with_name("ansible-inventory"), "-i", other),
            *("--host", "hub"),
        ],
        cwd=REPOSITORY,
        capture_output=True,
        check=True,
        text=True,
    )
    assert json.loads(answer.stdout)[SECRET] == Vault(other).read()[SECRET]


def test_a_second_command_is_refused_while_one_is_at_work(made: Vault) -> None:
    with made.locked(), pytest.raises(SecretsError, match="another command is at work"):
        make_secrets.make(made.inventory)


PRODUCTION = "production@tools/vault-password-production"


@pytest.mark.parametrize(
    ("arguments", "identities"),
    [
        (["encrypt", "--encrypt-vault-id", "production"], ""),
        (["encrypt", "--encrypt-vault-id=production"], ""),
        (["encrypt"], PRODUCTION),
        (["encrypt", "--vault-id", PRODUCTION], "elsewhere"),
        (["encrypt", f"--vault-id={PRODUCTION}"], "elsewhere"),
        (["encrypt", "--vault-password-file", "tools/vault-password-production"], "elsewhere"),
        (["rekey", "--new-vault-id", PRODUCTION], ""),
    ],
)
def test_nothing_is_encrypted_without_its_password(
    made: Vault, tmp_path: Path, arguments: list[str], identities: str
) -> None:
    """With the answer that other runs get along with anybody could open it."""
    path = made.path if arguments[0] == "rekey" else tmp_path / "values.yml"
    if not path.exists():
        path.write_text("vault_example: x\n")
    before, missing = path.read_bytes(), tmp_path / "nowhere"
    environment = {**os.environ, "PRIME_SPARK_VAULT_PASSWORD_FILE": str(missing)}
    if identities == "elsewhere":
        (tmp_path / "elsewhere.cfg").touch()
        environment["ANSIBLE_CONFIG"] = str(tmp_path / "elsewhere.cfg")
    elif identities:
        environment["ANSIBLE_VAULT_IDENTITY_LIST"] = identities
    done = subprocess.run(
        [Path(sys.executable).with_name("ansible-vault"), *arguments, path],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    sentence = f"Nothing was encrypted. The password of the production vault is not in {missing}"
    assert sentence in done.stderr
    assert path.read_bytes() == before


def test_a_missing_password_keeps_nobody_from_the_other_vault(made: Vault, tmp_path: Path) -> None:
    path = tmp_path / "values.yml"
    path.write_text("vault_example: x\n")
    subprocess.run(
        [
            Path(sys.executable).with_name("ansible-vault"),
            "encrypt",
            "--encrypt-vault-id=lab",
            path,
        ],
        cwd=REPOSITORY,
        env={**os.environ, "PRIME_SPARK_VAULT_PASSWORD_FILE": str(tmp_path / "nowhere")},
        check=True,
    )
    assert path.read_text().startswith("$ANSIBLE_VAULT;1.2;AES256;lab\n")


@pytest.mark.parametrize("tool", ["make_secrets.py", "rotate_secret.py"])
def test_help(tool: str) -> None:
    command = [sys.executable, REPOSITORY / "tools" / tool, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "--inventory" in done.stdout


# --- which secrets there are ----------------------------------------------------------------


def test_what_uses_a_secret_follows_from_the_roles(inventory: Path) -> None:
    references = References(inventory)
    assert references.roles(SECRET) == ["kafka", "telemetry"]
    assert references.roles("vault_timescale_ingest_password") == ["ingest", "timescale"]
    assert references.roles("vault_wireguard_psk_seed") == ["wireguard"]
    assert "vault_nas_cifs_password" in references.optional
    assert not [name for name in references.required if name.endswith(PREVIOUS)]


def test_a_use_through_the_inventory_counts(inventory: Path) -> None:
    directory = inventory / "group_vars" / "all"
    (directory / "main.yml").write_text(
        'site_token: "{{ vault_site_token }}"\napi_listen_address: "{{ site_token }}"\n'
    )
    references = References(inventory)
    assert "vault_site_token" in references.required
    assert references.roles("vault_site_token") == ["api"]


LAB = References(REPOSITORY / "inventories" / "lab")


@pytest.mark.parametrize("secret", LAB.required)
def test_every_secret_has_a_proof_of_its_rotation(secret: str) -> None:
    """Some role's credentials.yml tries it; playbooks/rotate.yml plays those of a host's roles."""
    written = {path.parts[-3] for path in (REPOSITORY / "roles").glob("*/tasks/credentials.yml")}
    trying = [
        role
        for role in sorted(written & set(LAB.roles(secret)))
        if LAB.leads_to(
            secret, role, (REPOSITORY / "roles" / role / "tasks" / "credentials.yml").read_text()
        )
    ]
    assert trying, f"no server is asked whether it refuses the old {secret}"


# --- make rotate ----------------------------------------------------------------------------


class Runs:
    """Stands for the runs of ansible-playbook: what they were asked, and how they end."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *statuses: int) -> None:
        self.statuses = list(statuses)
        self.asked: list[tuple[str, ...]] = []
        monkeypatch.setattr(rotate_secret, "play", self.play)

    def play(self, _: Path, *arguments: str) -> int:
        self.asked.append(arguments)
        return self.statuses.pop(0)


def rotate(vault: Vault, secret: str = SECRET) -> int:
    return rotate_secret.rotate(vault, References(vault.inventory), secret, [])


def test_a_rotation_runs_what_uses_the_secret_and_forgets_the_old_one(
    made: Vault, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    before, runs = made.read(), Runs(monkeypatch, 0, 0)
    assert rotate(made) == 0
    assert runs.asked == [
        ("site.yml", "--tags", "kafka,telemetry,verify"),
        ("playbooks/rotate.yml", "-e", f"rotate_secret={SECRET}"),
    ]
    after = made.read()
    assert after[SECRET] != before[SECRET]
    assert {**after, SECRET: ""} == {**before, SECRET: ""}
    printed = "".join(capsys.readouterr())
    assert "the old one is refused" in printed
    assert not any(value in printed for value in (*before.values(), *after.values()))


@pytest.mark.parametrize("statuses", [(2,), (0, 2)])
def test_a_failed_rotation_is_continued_with_the_same_values(
    made: Vault, monkeypatch: pytest.MonkeyPatch, statuses: tuple[int, ...]
) -> None:
    before = made.read()
    Runs(monkeypatch, *statuses)
    assert rotate(made) == 1
    half = made.read()
    assert half[SECRET + PREVIOUS] == before[SECRET]
    assert half[SECRET] != before[SECRET]
    assert any(
        "unfinished" in line
        for line in rotate_secret.listing(made, References(made.inventory))
        if line.startswith(SECRET)
    )
    Runs(monkeypatch, 0, 0)
    assert rotate(made) == 0
    after = made.read()
    assert after[SECRET] == half[SECRET]
    assert SECRET + PREVIOUS not in after


def test_an_unreachable_host_does_not_hold_up_a_rotation(
    made: Vault, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    Runs(monkeypatch, rotate_secret.UNREACHABLE, 0)
    assert rotate(made, "vault_wireguard_psk_seed") == 0
    assert "until then it is out of the VPN" in capsys.readouterr().out


def test_what_cannot_be_rotated_is_refused(made: Vault) -> None:
    with pytest.raises(SecretsError, match="did you mean vault_kafka_telemetry_password"):
        rotate(made, "vault_kafka_telemetry_pasword")
    with pytest.raises(SecretsError, match="a system that this fleet does not manage"):
        rotate(made, "vault_nas_cifs_password")
    known = made.read()
    made.write({name: value for name, value in known.items() if name != SECRET})
    with pytest.raises(SecretsError, match="was never made"):
        rotate(made)


PLAY = """
- hosts: all
  gather_facts: false
  tasks:
    - ansible.builtin.command: "true"
    - ansible.builtin.fail: {msg: refused}
      when: inventory_hostname == 'refused'
"""


@pytest.mark.parametrize(
    ("hosts", "status"),
    [
        ("there\naway ansible_connection=ssh ansible_host=127.0.0.1 ansible_port=1", 4),
        ("refused\naway ansible_connection=ssh ansible_host=127.0.0.1 ansible_port=1", 2),
        # As with an inventory whose vault cannot be opened.
        ("", 2),
    ],
    ids=["one away", "one away, one failed", "nothing was played"],
)
def test_a_rotation_is_not_told_that_a_host_which_failed_is_away(
    tmp_path: Path, hosts: str, status: int
) -> None:
    python = f"ansible_python_interpreter={sys.executable}"
    inventory, playbook = tmp_path / "hosts.ini", tmp_path / "play.yml"
    inventory.write_text(f"{hosts}\n[all:vars]\nansible_connection=local\n{python}\n")
    playbook.write_text(PLAY if hosts else "- hosts: [")
    assert rotate_secret.play(inventory, str(playbook)) == status

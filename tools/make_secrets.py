#!/usr/bin/env python3
"""Make every secret that an inventory lacks, straight into its encrypted vault file.

Existing secrets stay as they are. Nothing is printed but names, and nothing is ever written in
plain text, except the vault's own password, which is made on first use (0600) where the
inventory's password script looks for it.
"""

from __future__ import annotations

import argparse
import os
import secrets
import subprocess
import sys
from pathlib import Path

import yaml
from ansible.parsing.vault import VaultLib, VaultSecret

REPOSITORY = Path(__file__).resolve().parent.parent
# Every secret of the fleet. Letters and digits only: they end up in JAAS strings and ACL files.
SECRETS = (
    "vault_wireguard_psk_seed",
    "vault_kafka_admin_password",
    "vault_kafka_telemetry_password",
    "vault_kafka_ingest_password",
    "vault_redis_telemetry_password",
    "vault_timescale_superuser_password",
    "vault_timescale_owner_password",
    "vault_timescale_ingest_password",
    "vault_timescale_reader_password",
)


def lab_directory() -> Path:
    return Path(os.environ.get("PRIME_SPARK_LAB_DIR", "/var/lib/prime-spark-lab"))


def password_file(vault_id: str) -> Path:
    if vault_id == "lab":
        return lab_directory() / "secrets" / "vault-password"
    configured = os.environ.get("PRIME_SPARK_VAULT_PASSWORD_FILE")
    return Path(configured or Path.home() / ".config/prime-spark/vault-password")


def write_private(path: Path, content: bytes) -> None:
    """Write a file that only its owner can read, in one step."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    partial = path.with_name(f".{path.name}.partial")
    partial.unlink(missing_ok=True)
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    partial.rename(path)


def vault_file(inventory: Path, vault_id: str) -> Path:
    """Where the vault lies. The lab's goes with its disks, the inventory holds a link to it."""
    path = inventory / "group_vars" / "all" / "vault.yml"
    if vault_id != "lab":
        return path
    target = lab_directory() / "secrets" / "vault.yml"
    if not path.is_symlink() or path.readlink() != target:
        path.unlink(missing_ok=True)
        path.symlink_to(target)
    return target


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inventory", type=Path, required=True, help="directory of the inventory")
    arguments = parser.parse_args()
    inventory: Path = arguments.inventory.resolve()
    if not (inventory / "group_vars" / "all").is_dir():
        parser.error(f"{arguments.inventory} has no group_vars/all: is it an inventory directory?")
    vault_id = inventory.name
    passwords = password_file(vault_id)
    target = vault_file(inventory, vault_id)
    if target.exists() and not passwords.exists():
        print(
            f"{target} exists, but its password {passwords} does not: put the password back, "
            "or delete the vault file to have new secrets made",
            file=sys.stderr,
        )
        return 1
    if not passwords.exists():
        write_private(passwords, secrets.token_urlsafe(48).encode() + b"\n")
        print(f"made the vault password {passwords}: keep a copy of it somewhere safe")
    # Through the script that ansible itself asks, so that both always agree.
    answer = subprocess.run(
        [str(REPOSITORY / "tools" / f"vault-password-{vault_id}")],
        capture_output=True,
        check=True,
    )
    vault = VaultLib([(vault_id, VaultSecret(answer.stdout.strip()))])
    known: dict[str, str] = {}
    if target.exists():
        known = yaml.safe_load(vault.decrypt(target.read_bytes())) or {}
    missing = [name for name in SECRETS if not known.get(name)]
    if not missing:
        return 0
    known.update({name: secrets.token_hex(24) for name in missing})
    text = yaml.safe_dump(known, sort_keys=True).encode()
    write_private(target, vault.encrypt(text, vault.secrets[0][1], vault_id=vault_id))
    print(f"made {len(missing)} secrets in {target}: {', '.join(missing)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

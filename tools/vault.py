"""An inventory's encrypted secrets: which there have to be, where each is used, reading, writing.

No list of secrets is kept anywhere: a secret is what a role's defaults or an inventory refer to as
`vault_<name>`. One that is referred to as `vault_<name> | default(...)` is the owner's to set (the
password of the owner's own NAS, say), it is neither made nor rotated.
"""

from __future__ import annotations

import os
import re
import secrets
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from ansible.errors import AnsibleError
from ansible.parsing.vault import VaultLib, VaultSecret

from plugins.module_utils.atomic import replace_file
from plugins.module_utils.lock import exclusive

REPOSITORY = Path(__file__).resolve().parent.parent
# What a secret was before its rotation, until the rotation is finished.
PREVIOUS = "_previous"

_REFERENCE = re.compile(r"\b(vault_[a-z0-9_]+)\b(\s*\|\s*default\b)?")
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class SecretsError(Exception):
    """The secrets cannot be read or made; the message says why and what helps."""


# --- which secrets there are ----------------------------------------------------------------


class Definition(NamedTuple):
    """A variable of a role or of an inventory, with the templates in its value as one text."""

    name: str
    role: str
    text: str


class References:
    """What roles and an inventory refer to."""

    def __init__(self, inventory: Path, repository: Path = REPOSITORY) -> None:
        self._definitions = list(_definitions(inventory, repository))
        required: set[str] = set()
        optional: set[str] = set()
        for definition in self._definitions:
            for name, default in _REFERENCE.findall(definition.text):
                (optional if default else required).add(name)
        self.required = sorted(required)
        self.optional = sorted(name for name in optional - required if not name.endswith(PREVIOUS))

    def roles(self, secret: str) -> list[str]:
        """The roles, also tags, that use a secret, directly or through other variables."""
        names = self._dependent(secret)
        return sorted({d.role for d in self._definitions if d.name in names} - {""})

    def leads_to(self, secret: str, role: str, text: str) -> bool:
        """Whether a text of a role uses one of the role's variables that has the secret's value."""
        mine = {d.name for d in self._definitions if d.role == role} & self._dependent(secret)
        return bool(mine & set(_WORD.findall(text)))

    def _dependent(self, secret: str) -> set[str]:
        """The variables whose values need the secret's, directly or through others."""
        names, grown = {secret}, True
        while grown:
            grown = False
            for definition in self._definitions:
                if definition.name not in names and names & set(_WORD.findall(definition.text)):
                    names.add(definition.name)
                    grown = True
        return names - {secret}


def _definitions(inventory: Path, repository: Path) -> Iterator[Definition]:
    roles = sorted(path.name for path in (repository / "roles").iterdir() if path.is_dir())
    for role in roles:
        for kind in ("defaults", "vars"):
            for name, value in _variables(repository / "roles" / role / kind / "main.yml"):
                yield Definition(name, role, value)
    files = [
        path for kind in ("group_vars", "host_vars") for path in inventory.rglob(f"{kind}/**/*")
    ]
    for path in sorted(files):
        if path.suffix in {".yml", ".yaml"} and path.is_file():
            for name, value in _variables(path):
                yield Definition(name, _role_of(name, roles), value)
    for path in sorted(inventory.glob("*.yml")):
        yield from _inventory_variables(path, roles)


def _variables(path: Path) -> Iterator[tuple[str, str]]:
    """Top-level variables of a file; an encrypted file says nothing about references."""
    if not path.exists() or path.read_bytes().startswith(b"$ANSIBLE_VAULT"):
        return
    for name, value in (yaml.safe_load(path.read_text()) or {}).items():
        yield str(name), str(value)


def _inventory_variables(path: Path, roles: list[str]) -> Iterator[Definition]:
    """Variables of hosts and groups that stand in the inventory file itself."""

    def below(value: Any) -> Iterator[Definition]:
        for key, item in value.items() if isinstance(value, dict) else ():
            if _role_of(str(key), roles):
                yield Definition(str(key), _role_of(str(key), roles), str(item))
            yield from below(item)

    yield from below(yaml.safe_load(path.read_text()) or {})


def _role_of(variable: str, roles: list[str]) -> str:
    """The role whose input a variable is, by its name."""
    owners = [role for role in roles if variable.lstrip("_").startswith(f"{role}_")]
    return max(owners, key=len, default="")


# --- the vault ------------------------------------------------------------------------------


class Vault:
    """The encrypted file of an inventory and the password that opens it."""

    def __init__(self, inventory: Path) -> None:
        if not (inventory / "group_vars" / "all").is_dir():
            raise SecretsError(
                f"{inventory} has no group_vars/all: expected the directory of an inventory, such "
                "as inventories/production"
            )
        self.inventory = inventory.resolve()
        # The owner's inventories share a password, whatever their names.
        self.id = "lab" if self.inventory.name == "lab" else "production"
        self._script = REPOSITORY / "tools" / f"vault-password-{self.id}"
        link = self.inventory / "group_vars" / "all" / "vault.yml"
        if self.id == "lab":
            # The lab's goes with its disks, the inventory holds a link to it.
            self.password_file = _lab_directory() / "secrets" / "vault-password"
            self.path = _lab_directory() / "secrets" / "vault.yml"
            if not link.is_symlink() or link.readlink() != self.path:
                link.unlink(missing_ok=True)
                link.symlink_to(self.path)
        else:
            configured = os.environ.get("PRIME_SPARK_VAULT_PASSWORD_FILE")
            self.password_file = Path(
                configured or Path.home() / ".config/prime-spark/vault-password"
            )
            self.path = link

    def make_password(self) -> bool:
        """Make the vault's password where there is none; returns whether that was so."""
        if self.password_file.exists():
            return False
        if self.path.exists():
            raise SecretsError(
                f"{self.path} exists, but its password {self.password_file} does not: put the "
                "password back (or name its file in PRIME_SPARK_VAULT_PASSWORD_FILE), or delete "
                "the vault file to have all secrets made again"
            )
        self.password_file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        replace_file(self.password_file, secrets.token_urlsafe(48) + "\n")
        return True

    def read(self) -> dict[str, str]:
        """The secrets by name; none where there is no vault yet."""
        if not self.path.exists():
            return {}
        if not self.password_file.exists():
            self.make_password()
        try:
            text = self._library().decrypt(self.path.read_bytes())
        except AnsibleError as error:
            raise SecretsError(
                f"{self.path} does not open with the password in {self.password_file}: "
                f"{str(error).splitlines()[0]}"
            ) from None
        known = yaml.safe_load(text) or {}
        return {str(name): value for name, value in known.items()}

    def write(self, known: dict[str, str]) -> None:
        """Replace the vault in one step."""
        library = self._library()
        text = yaml.safe_dump(known, sort_keys=True).encode()
        replace_file(self.path, library.encrypt(text, library.secrets[0][1], vault_id=self.id))

    def _library(self) -> Any:
        # Through the script that ansible itself asks, so that both always agree.
        answer = subprocess.run([str(self._script)], capture_output=True, check=True)
        return VaultLib([(self.id, VaultSecret(answer.stdout.strip()))])

    def locked(self) -> AbstractContextManager[None]:
        """One command at a time changes the vault."""
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        said = f"another command is at work on {self.path}: wait until it has ended"
        return exclusive(self.path.parent, 0, busy=lambda _: SecretsError(said))


def new_secret() -> str:
    """Letters and digits only: secrets end up in JAAS strings and ACL files."""
    return secrets.token_hex(24)


def _lab_directory() -> Path:
    return Path(os.environ.get("PRIME_SPARK_LAB_DIR", "/var/lib/prime-spark-lab"))

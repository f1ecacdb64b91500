#!/usr/bin/env python3
"""Add, change or remove a user of the API, in the inventory's encrypted vault.

The password is asked for (or read from stdin), or generated and printed once; the vault gets its
argon2id hash. The next run of `site.yml --tags api` brings it to the API: whoever was logged in as
that user has to log in again.
"""

from __future__ import annotations

import argparse
import getpass
import json
import re
import secrets
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from argon2 import PasswordHasher

from plugins.filter.api import MEMORY_KIB, PARALLELISM, TIME_COST
from tools.vault import SecretsError, Vault

ROLES = ("viewer", "operator", "admin")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
MIN_LENGTH, MAX_LENGTH = 12, 256
VARIABLE = "vault_api_users"


def password_from(generate: bool) -> tuple[str, bool]:
    """The password, and whether it was generated."""
    if generate:
        return secrets.token_urlsafe(18), True
    if sys.stdin.isatty():
        password = getpass.getpass("Password: ")
        if getpass.getpass("Again: ") != password:
            raise SecretsError("the two passwords differ")
    else:
        password = sys.stdin.readline().rstrip("\r\n")
    if not MIN_LENGTH <= len(password) <= MAX_LENGTH:
        raise SecretsError(
            f"the password has {len(password)} characters, expected {MIN_LENGTH} to {MAX_LENGTH}"
        )
    return password, False


def change(arguments: argparse.Namespace) -> list[str]:
    """Do what was asked for; returns the lines to print."""
    name: str = arguments.name
    if not NAME.fullmatch(name):
        raise SecretsError(f"the name {name!r} has other characters than letters, digits, . _ @ -")
    vault = Vault(arguments.inventory)
    with vault.locked():
        known = vault.read()
        # One text, as every other secret: what searches and replaces secrets knows no other kind.
        users = json.loads(known.get(VARIABLE) or "{}")
        if arguments.remove:
            if users.pop(name, None) is None:
                raise SecretsError(f"there is no user {name}; there are: {', '.join(users)}")
            said = [f"removed {name}"]
        else:
            password, made_up = password_from(arguments.generate)
            hasher = PasswordHasher(TIME_COST, MEMORY_KIB, PARALLELISM)
            users[name] = {"role": arguments.role, "password_hash": hasher.hash(password)}
            said = [f"{name} is {arguments.role}"]
            said += [f"password, shown only now: {password}"] if made_up else []
        vault.write({**known, VARIABLE: json.dumps(users, sort_keys=True)})
    run = f"ansible-playbook -i {arguments.inventory} site.yml --tags api"
    return [*said, f"bring it to the API: {run}"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inventory", type=Path, required=True, help="directory of the inventory")
    parser.add_argument("--role", choices=ROLES, default="viewer")
    parser.add_argument("--generate", action="store_true", help="generate a password")
    parser.add_argument("--remove", action="store_true", help="remove the user")
    parser.add_argument("name")
    try:
        said = change(parser.parse_args())
    except (SecretsError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("\n".join(said))
    return 0


if __name__ == "__main__":
    sys.exit(main())
